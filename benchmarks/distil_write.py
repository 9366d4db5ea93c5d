"""The figures of benchmarks/distil.py as a section of RESULTS.md and as a plot beside it."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t at 95 % for that many seeds."""


def section(found: dict[str, Any], setting: str) -> str:
    """The section's text: a line a loss, then each seed."""
    seeds = sorted({run["seed"] for run in found["runs"]})
    kl_heads = " | ".join(f"KL, seed {seed}" for seed in seeds)
    lines = [
        "## What each loss is worth",
        "",
        f"{setting} Gemma 3 270M (the Q4_K_M weights in float32, {found['teacher_body'] / 1e6:.0f} M parameters "
        f"besides the embeddings), cut down to the {found['vocabulary']:,} tokens of the passages, scored them by "
        f"`local` with top 20; the student is a Llama of {found['student_body'] / 1e6:.1f} M with the same tokens. KL "
        f"is the whole KL(teacher ‖ student) over that vocabulary on {found['tokens']:,} held-out tokens, the sum of "
        "three: how much the 20 candidates get together, which of them, and which of all other tokens. The teacher's "
        f"tail holds {mean(run['teacher_tail'] for run in found['runs']):.1%}. Calibration error: tokens drawn from "
        f"the teacher. Mean over seeds {', '.join(map(str, seeds))}, ± the 95 % interval of the mean (Student's t).",
        "",
        f"| loss | {' | '.join(head for _, _, head in _COLUMNS)} | {kl_heads} |",
        "|---|" + "---|" * (len(_COLUMNS) + len(seeds)),
    ]
    for name in dict.fromkeys(run["loss"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["loss"] == name]
        each = [f"{run['kl']:.3f}" for run in runs]
        figures = [_mean(runs, key, form) for key, form, _ in _COLUMNS]
        lines.append(f"| {name} | " + " | ".join([*figures, *each]) + " |")
    won = "beats CE and both renormalised losses" if found["bucket_wins_every_seed"] else "does NOT beat all others"
    plot_line = "![KL and calibration error by loss](distil.svg)"
    why = "" if found["bucket_wins_every_seed"] else _why(found)
    return "\n".join([*lines, "", f"In KL, bucket {won} in every seed.{why}", "", plot_line, ""])


def _why(found: dict[str, Any]) -> str:
    """Where bucket and the loss that rescales the teacher alone differ: by the parts, and by what the tail holds."""
    zero, bucket = (
        {key: mean(run[key] for run in found["runs"] if run["loss"] == name) for key in ("kl_mass", "kl_head", "tail")}
        for name in ("top-k, teacher renormalised", "bucket")
    )
    tail = mean(run["teacher_tail"] for run in found["runs"])
    there = "above" if zero["tail"] > tail else "below"
    mass, head = bucket["kl_mass"] - zero["kl_mass"], bucket["kl_head"] - zero["kl_head"]
    return (
        f" Against the loss that rescales the teacher alone it has {mass:+.3f} nats in how much the candidates get and "
        f"{head:+.3f} among them. That loss teaches that the tail is impossible, which misleads a student whose tail "
        f"is already below the teacher's {tail:.0%}; here it is {there} ({zero['tail']:.0%}, with bucket "
        f"{bucket['tail']:.0%}). While it is above, both pull the same way, and the one without a tail pulls harder."
    )


_COLUMNS = (
    ("kl", "{:.3f}", "KL, nats/token"),
    ("kl_mass", "{:.3f}", "candidates or not"),
    ("kl_head", "{:.3f}", "among candidates"),
    ("kl_tail", "{:.3f}", "within the tail"),
    ("tail", "{:.1%}", "student's tail"),
    ("calibration_error", "{:.1%}", "calibration error"),
    ("nll", "{:.3f}", "NLL of the text"),
    ("top1", "{:.1%}", "top-1 agreement"),
)


def _mean(runs: list[dict[str, Any]], key: str, form: str) -> str:
    values = [run[key] for run in runs]
    half = T_95[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{form.format(mean(values))} ± {form.format(half)}"


def plot(found: dict[str, Any], path: Path) -> None:
    """A point a seed, KL and calibration error side by side, as SVG."""
    import altair as alt

    names = list(dict.fromkeys(run["loss"] for run in found["runs"] if run["loss"] != "untrained"))
    data = alt.Data(values=[run for run in found["runs"] if run["loss"] != "untrained"])
    charts = [
        alt.Chart(data, width=260, height=160)
        .mark_point(filled=True, size=60, opacity=0.8)
        .encode(
            x=alt.X(f"{key}:Q", title=title, scale=alt.Scale(zero=False)).axis(format=form),
            y=alt.Y("loss:N", sort=names, title=None),
            color=alt.Color("loss:N", sort=names, legend=None),
        )
        for key, title, form in (
            ("kl", "KL to the teacher, nats per token", ".2f"),
            ("calibration_error", "calibration error", ".1%"),
        )
    ]
    alt.hconcat(*charts).configure(background="white").save(path)
