"""The report's plots as vega-lite specifications (made with altair), and the one script that draws them all.

The script holds Vega itself (900 KB), so that the page asks no network. Colours of text and lines are `currentColor`:
the plots follow the page's light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import TrainError

NAMES = {"untrained": "untrained", "student": "student (soft labels)", "hard_twin": "twin (hard labels only)"}
COLOURS = {"untrained": "#8f98a3", "student": "#2f7de1", "hard_twin": "#e0762f"}
HEIGHT = 210
INK = "currentColor"
DRAW = """
globalThis.drawPlots = () => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  for (const [name, spec] of Object.entries(plots)) {
    vegaEmbed("#plot-" + name, spec, {actions: false, renderer: "svg", tooltip: {theme: dark ? "dark" : "light"}});
  }
};
"""


class PlotsMissing(TrainError):
    """What draws the report's plots is not installed."""

    exit_code = 2


def script() -> str:
    """JavaScript that defines vegaEmbed and drawPlots; it needs nothing else."""
    try:
        import vl_convert
    except ImportError as error:
        raise PlotsMissing("The report's plots need vl-convert-python: pip install 'potstill[train]'.") from error
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the defaults
    return (bundle + DRAW).replace("</script", "<\\/script")


def plots(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → vega-lite specification, of what there is to show."""
    try:
        import altair
    except ImportError as error:
        raise PlotsMissing("The report's plots need altair: pip install 'potstill[train]'.") from error
    models = content["models"]
    made = {
        "kl": _bars(altair, models),
        "curves": _curves(altair, content["curves"]),
        "reliability": _reliability(altair, models),
        "entropy": _by_entropy(altair, models),
        "domain": _groups(altair, content["groups"]["domain"]),
    }
    return {name: _spec(chart) for name, chart in made.items() if chart is not None}


def _spec(chart: Any) -> dict[str, Any]:
    axis: dict[str, Any] = dict.fromkeys(("domainColor", "tickColor", "gridColor", "labelColor", "titleColor"), INK)
    axis |= {"gridOpacity": 0.14, "domainOpacity": 0.4, "tickOpacity": 0.4, "titleFontWeight": "normal"}
    axis |= {"labelFontSize": 12, "titleFontSize": 12, "titlePadding": 8}
    legend = {"labelColor": INK, "orient": "bottom", "labelFontSize": 12, "labelLimit": 300}
    styled = chart.properties(width="container", height=HEIGHT, background="transparent")
    styled = styled.configure(font="system-ui, sans-serif")  # first: it puts aside what was configured before
    styled = styled.configure_view(strokeWidth=0).configure_axis(**axis).configure_legend(**legend)
    spec: dict[str, Any] = styled.to_dict()
    return spec


def _colour(altair: Any, names: Sequence[str], *, legend: bool = True) -> Any:
    scale = altair.Scale(domain=[NAMES[n] for n in names], range=[COLOURS[n] for n in names])
    return altair.Color("model:N", scale=scale, legend=altair.Legend(title=None) if legend else None)


def _bars(altair: Any, models: Mapping[str, Any]) -> Any:
    values = [
        {"model": NAMES[name], "kl": one["kl"], "low": one["kl_low"], "high": one["kl_high"]}
        for name, one in models.items()
    ]
    base = altair.Chart(altair.Data(values=values)).encode(
        y=altair.Y("model:N", title=None, sort=None, axis=altair.Axis(labelLimit=200, grid=False, ticks=False))
    )
    tips = [altair.Tooltip(f"{field}:Q", format=".3f") for field in ("kl", "low", "high")]
    room = altair.Scale(domain=[0, 1.18 * max(max(one["high"] for one in values), 1e-6)], nice=False)
    bars = base.mark_bar(height=26, cornerRadiusEnd=3).encode(
        x=altair.X("kl:Q", title="KL to the teacher, nats per token", scale=room),
        color=_colour(altair, list(models), legend=False),
        tooltip=tips,
    )
    rules = base.mark_rule(color=INK, strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    figures = base.mark_text(align="left", dx=7, color=INK, fontSize=13).encode(
        x="high:Q", text=altair.Text("kl:Q", format=".2f")
    )
    return altair.layer(bars, rules, figures)


def _curves(altair: Any, curves: Mapping[str, Sequence[Sequence[float]]]) -> Any:
    values = [{"model": NAMES[name], "step": step, "kl": kl} for name, curve in curves.items() for step, kl in curve]
    if len(values) < 2:
        return None
    return _lines(altair, values, list(curves), "step", "training step", "kl", "KL on the training rows, nats")


def _reliability(altair: Any, models: Mapping[str, Any]) -> Any:
    values = [
        {"model": NAMES[name], "confidence": one["confidence"], "accuracy": one["accuracy"], "tokens": one["tokens"]}
        for name, model in models.items()
        for one in model["reliability"]
    ]
    if not values:
        return None
    ends = altair.Data(values=[{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}])
    honest = altair.Chart(ends).mark_line(color=INK, strokeDash=[4, 4], opacity=0.5, strokeWidth=1)
    honest = honest.encode(x="confidence:Q", y="accuracy:Q")
    lines = _lines(
        altair, values, list(models), "confidence", "how sure the model is", "accuracy", "how often it is right"
    )
    return altair.layer(honest, lines)


def _by_entropy(altair: Any, models: Mapping[str, Any]) -> Any:
    values = [
        {"model": NAMES[name], "entropy": one["entropy"], "kl": one["kl"], "tokens": one["tokens"]}
        for name, model in models.items()
        for one in model["by_entropy"]
    ]
    if not values:
        return None
    return _lines(
        altair, values, list(models), "entropy", "the teacher's entropy, nats", "kl", "KL to the teacher, nats"
    )


def _lines(
    altair: Any, values: list[dict[str, Any]], names: Sequence[str], x: str, x_title: str, y: str, y_title: str
) -> Any:
    tips = ["model:N", *(altair.Tooltip(f"{field}:Q", format=".3~f") for field in (x, y))]
    chart = altair.Chart(altair.Data(values=values)).mark_line(strokeWidth=2, point={"size": 28, "filled": True})
    return chart.encode(
        x=altair.X(f"{x}:Q", title=x_title),
        y=altair.Y(f"{y}:Q", title=y_title),
        color=_colour(altair, names),
        tooltip=tips,
    )


def _groups(altair: Any, groups: Sequence[Mapping[str, Any]]) -> Any:
    """KL by domain with its interval, where there are several."""
    if len(groups) < 2:
        return None
    shown = [name for name in groups[0]["models"] if name != "untrained"]
    values = [
        {"domain": group["name"] or "(none)", "model": NAMES[name], "kl": one["kl"], "low": one["kl_low"]}
        | {"high": one["kl_high"], "rows": group["rows"]}
        for group in groups
        for name, one in group["models"].items()
        if name in shown
    ]
    base = altair.Chart(altair.Data(values=values)).encode(
        y=altair.Y("domain:N", title=None, axis=altair.Axis(grid=True, labelLimit=180)),
        yOffset=altair.YOffset("model:N"),
        color=_colour(altair, shown),
    )
    rules = base.mark_rule(strokeWidth=2, opacity=0.55).encode(
        x=altair.X("low:Q", title="KL to the teacher, nats (95 %)", scale=altair.Scale(zero=False)), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=55).encode(
        x="kl:Q", tooltip=["domain:N", "model:N", "rows:Q", altair.Tooltip("kl:Q", format=".3f")]
    )
    return altair.layer(rules, points)
