"""A profile for people: what looks wrong first, then the labels, the k to choose, the ceiling, production."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from policies.report import printable
from storage.profile import Profile
from storage.profile_against import Against
from storage.profile_labels import Choice
from storage.profile_reference import Estimate

if TYPE_CHECKING:
    from rich.console import RenderableType


def render(found: Profile) -> RenderableType:
    """A rich renderable; text of models and files has no control codes."""
    from rich.console import Group

    return Group(*_parts(found))


def _parts(found: Profile) -> Iterator[RenderableType]:
    looked = "" if found.looked_at == found.rows else f", of which {found.looked_at:,} were looked at"
    yield _line(f"{found.path}, version {found.version}: {found.rows:,} rows, {found.tokens:,} tokens{looked}", "bold")
    yield _faults(found)
    for shift in found.groups:
        yield _line(
            f"  {shift.by} {shift.group}: {shift.rows} rows differ in {shift.measure} by {shift.difference:+.1f} "
            f"standard deviations of a row (z {shift.z:+.0f})",
            "yellow",
        )
    if found.labels:
        yield _line("")
        yield from _labels(found)
    if found.ceilings:
        yield _line("")
        yield from _ceilings(found)
    if found.against is not None:
        yield _line("")
        yield from _against(found.against)
    yield _line("")
    if found.warnings:
        yield _line(f"Look at: {', '.join(name.replace('_', ' ') for name in found.warnings)}.", "bold yellow")
    else:
        yield _line("Nothing looks wrong.", "bold green")


def _faults(found: Profile) -> Any:
    table = _grid("", "rows", "share", "95 %", "")
    for one in found.findings:
        mark = "!" if one.warn else "·"
        share = f"{one.share:.1%}" if one.of else "unknown"
        style = "yellow" if one.warn else "dim" if not one.rows else ""
        table.add_row(
            _text(mark, style),
            _text(f"{one.rows:,}", style),
            _text(share, style),
            _text(f"{one.low:.1%} – {one.high:.1%}" if one.of else "", "dim"),
            _text(one.meaning, style),
        )
        if one.warn:
            for example in one.examples[:3]:
                table.add_row("", "", "", "", _text(f"  {example.prompt_id}: {example.why}", "dim"))
    return table


def _labels(found: Profile) -> Iterator[RenderableType]:
    figures = found.labels
    yield _line(
        f"Labels: entropy {figures['entropy']:.2f} nats, the realised tokens' surprise {figures['nll']:.2f}; the best "
        f"candidate has {figures['best_probability']:.0%}, the stored {found.k} have {figures['captured_mass']:.1%}."
    )
    table = _grid("k", "captured", "bytes/token", "untold", "bias", "")
    for choice in found.choices:
        here = "stored" if choice.k == found.k else "" if choice.measured else "extrapolated"
        style = "bold" if choice.k == found.k else "" if choice.measured else "dim"
        lost = "" if choice.lost is None else f"{choice.lost:.3f}"
        cells = (str(choice.k), f"{choice.captured:.1%}", f"{choice.bytes:.0f}", lost, f"{choice.overconfident:.3f}")
        table.add_row(*(_text(cell, style) for cell in (*cells, here)))
    yield table
    yield _line(
        "untold: nats of the stored entropy that fewer candidates leave unsaid; bias: nats off without a tail", "dim"
    )
    advice = _advice(found.choices, found.k)
    if advice:
        yield _line(advice)


def _advice(choices: tuple[Choice, ...], k: int) -> str:
    """What the next smaller and the next larger k would change."""
    stored = next((c for c in choices if c.k == k), None)
    smaller = [c for c in choices if c.measured and c.k < k]
    larger = [c for c in choices if not c.measured]
    if stored is None or not smaller or not larger:
        return ""
    less, more = smaller[-1], larger[0]
    return (
        f"k = {less.k} would save {1 - less.bytes / stored.bytes:.0%} of the bytes and leave {less.lost or 0:.3f} nats "
        f"of {stored.entropy or 0:.2f} untold; k = {more.k} would cost about {more.bytes / stored.bytes - 1:.0%} more "
        f"for {more.captured - stored.captured:.1%} more mass (extrapolated)."
    )


def _ceilings(found: Profile) -> Iterator[RenderableType]:
    yield _line("The teacher against the references: a student that learns from it gets no better.")
    table = _grid("domain", "rows", "right", "words in common", "nll, nats", "calibration error")
    for one in found.ceilings:
        cells = [one.domain or "all", f"{one.rows:,}", *(_estimate(e, True) for e in (one.accuracy, one.overlap))]
        cells += [_estimate(one.nll, False), _estimate(one.calibration_error, True)]
        table.add_row(*(_text(cell, "bold" if one.domain is None else "") for cell in cells))
    yield table


def _against(one: Against) -> Iterator[RenderableType]:
    yield _line(f"Against {one.production}: {one.table_prompts:,} prompts beside {one.prompts:,} of production")
    yield _line(f"  a classifier tells them apart with AUC {_estimate(one.auc, False)}; 0.5 is not at all")
    yield _line(
        f"  {_estimate(one.coverage, True)} of production's prompts have a near neighbour in the table "
        "(95% have one in production)"
    )
    yield _line(f"  {_estimate(one.foreign, True)} of the table's prompts have none in production")
    for cluster in one.clusters:
        who = "the table lacks" if cluster.lacks == "table" else "production has less of"
        yield _line(
            f"  {who}: {', '.join(cluster.words) or 'no telling words'}  (production {cluster.production:.1%}, "
            f"table {cluster.table:.1%})",
            "yellow" if cluster.lacks == "table" else "",
        )
        for example in cluster.examples:
            yield _line(f"      {example[:100]}", "dim")
    for example in one.uncovered:
        yield _line(f"  furthest from the table: {example[:90]}", "dim")
    if one.planned is not None:
        plan = one.planned
        yield _line(
            f"  {plan.picked} prompts written to {plan.out}: with them production's prompts have a near neighbour in "
            f"{plan.coverage_after:.1%} (now {plan.coverage_before:.1%}), mean likeness {plan.likeness_after:.2f} "
            f"(now {plan.likeness_before:.2f})",
            "bold",
        )


def _estimate(one: Estimate | None, share: bool) -> str:
    if one is None:
        return "unknown"
    form = "{:.1%} ({:.1%} – {:.1%})" if share else "{:.3f} ({:.3f} – {:.3f})"
    return form.format(one.value, one.low, one.high)


def _grid(*heads: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), show_header=any(heads), header_style="dim")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number in (0, len(heads) - 1) else "right", overflow="fold")
    return table


def _text(words: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(words), style)


def _line(words: str, style: str = "") -> RenderableType:
    return _text(words, style)  # type: ignore[no-any-return]
