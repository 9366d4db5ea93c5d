"""`potstill profile`: what the rows of a table version are like, and which of them look wrong.

Each kind of fault is a share of the rows with the rows named, so that a person can look and a gate can hold; nothing is
removed. The usual threshold for a warning is one row in a hundred.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage.errors import EmptyTable, StorageError
from storage.profile_against import Against, Plan, compare_with
from storage.profile_embed import Features, chosen, dense, of_candidates
from storage.profile_labels import Choice, RowMeasures, TokenSample, as_numbers, choices, measure
from storage.profile_outliers import GroupShift, group_shifts, other_teacher
from storage.profile_read import ROWS, Text, rows, text
from storage.profile_reference import Answered, Ceiling, ceilings, compare, wilson
from storage.profile_subjects import isolated_group, strange_subject
from storage.profile_text import loop, refusal, wrong_languages
from storage.profile_twins import twins
from storage.table import Table

WARN = 0.01
EXAMPLES = 5
QUOTED = 60
"""Characters of a prompt in a reason."""
KINDS = {
    "truncated": "answers cut off by max_tokens",
    "loops": "answers that repeat themselves",
    "refusals": "answers that refuse",
    "duplicate_prompts": "prompts that nearly repeat another prompt",
    "duplicate_answers": "answers that nearly repeat another answer",
    "wrong_language": "answers in another language than asked in",
    "other_teacher": "labels unlike those of the other rows",
    "strange_subject": "texts unlike those of the other rows",
    "flagged": "rows that carry a flag from their collection",
}
EXPECTED = ("truncated",)
"""Kinds that a sound table may be full of (a text is cut where it is meant to be): shown, never warned of."""


class ProfileMissing(StorageError):
    """The libraries that a profile measures with are not installed."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a kind, and what was seen of it."""

    key: str
    prompt_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """How many rows are of a kind; `share` with its 95 % interval is of the rows that could be judged (`of`)."""

    kind: str
    meaning: str
    rows: int
    of: int
    share: float
    low: float
    high: float
    warn: bool
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """All that was measured. `measures` are the numbers that gates ask for, None where a table cannot tell."""

    path: str
    version: int
    rows: int
    looked_at: int
    tokens: int
    labelled_rows: int
    findings: tuple[Finding, ...]
    groups: tuple[GroupShift, ...]
    labels: Mapping[str, float]
    k: int
    choices: tuple[Choice, ...]
    ceilings: tuple[Ceiling, ...]
    flags: Mapping[str, int]
    domains: Mapping[str, int]
    features: str
    against: Against | None
    measures: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """The kinds that a person should look at."""
        found = [finding.kind for finding in self.findings if finding.warn]
        return found + (["production"] if self.against is not None and self.against.warn else [])

    def to_json(self) -> dict[str, Any]:
        """The record of `profile --json`."""
        return {"format": "potstill-profile-1", "warnings": self.warnings, **asdict(self)}


def profile(
    path: Path | str | Table,
    *,
    version: int | None = None,
    most: int = ROWS,
    against: Path | None = None,
    plan: Plan | None = None,
    features: Features = "auto",
) -> Profile:
    """Measure a table version (its newest by default), looking at `most` rows at most.

    `against` is a file of production's prompts; `plan` asks for the prompts of a pool that would close the gap best.
    Raises EmptyTable, ProfileMissing, and what opening the table raises.
    """
    absent = [m for m in ("sklearn", "datasketch", "py3langid") if importlib.util.find_spec(m) is None]
    if absent:
        raise ProfileMissing(f"A profile needs {', '.join(absent)}: pip install 'potstill[profile]'.")
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    table = path if isinstance(path, Table) else Table.open(path, version)
    with threadpool_limits(1):  # many small products: threads that wait for each other spinning only take time
        return _profile(table, most, against, plan, chosen(features))


def _profile(
    table: Table, most: int, against: Path | None, plan: Plan | None, kind: Literal["ngrams", "embeddings"]
) -> Profile:
    files = table.files()
    seen = _read(table, most)
    if not seen.texts:
        raise EmptyTable(f"{table.path} has no rows at version {table.version}: collect some before profiling it.")
    shifts = group_shifts(
        seen.measures,
        [dict(seen.texts[m.number].source) for m in seen.measures],
        [seen.texts[m.number].domain for m in seen.measures],
    )
    findings = _findings(seen, shifts, kind)
    compared = None if against is None else compare_with(seen.texts, against, plan=plan, features=kind)
    found = Profile(
        path=str(table.path),
        version=table.version,
        rows=sum(file.rows for file in files),
        looked_at=len(seen.texts),
        tokens=sum(file.tokens for file in files),
        labelled_rows=len(seen.measures),
        findings=tuple(findings),
        groups=tuple(shifts),
        labels=_label_figures(seen.measures),
        k=seen.sample.top_ids[0].shape[1] if seen.sample.top_ids else 0,
        choices=tuple(choices(seen.sample, table.mantissa_bits)),
        ceilings=tuple(ceilings(seen.answered)),
        flags=dict(Counter(flag for one in seen.texts for flag in one.flags)),
        domains=dict(Counter(one.domain or "" for one in seen.texts).most_common()),
        features=kind,
        against=compared,
    )
    found.measures.update(_measures(found))  # type: ignore[attr-defined]
    return found


@dataclass(slots=True)
class _Seen:
    texts: list[Text] = field(default_factory=list)
    loops: list[str | None] = field(default_factory=list)
    measures: list[RowMeasures] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    sample: TokenSample = field(default_factory=lambda: TokenSample([], [], []))


def _read(table: Table, most: int) -> _Seen:
    seen = _Seen()
    for number, row in enumerate(rows(table, most)):
        one = text(row)
        seen.texts.append(one)
        seen.loops.append(loop(one.answer, None if row.labels is None else row.labels.token_ids))
        if row.labels is not None and row.mode != "classify":
            seen.sample.add(row.labels)
            measured = measure(number, row.labels)
            if measured is not None:
                seen.measures.append(measured)
        answered = compare(row)
        if answered is not None:
            seen.answered.append(answered)
    return seen


def _findings(seen: _Seen, shifts: Sequence[GroupShift], features: Any) -> list[Finding]:
    texts = seen.texts
    why: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    why["loops"] = {n: found for n, found in enumerate(seen.loops) if found is not None}
    why["duplicate_prompts"] = _twins([t.prompt for t in texts], [t.prompt_id for t in texts], texts)
    why["duplicate_answers"] = _twins([t.answer for t in texts], [t.key for t in texts], texts)
    languages = wrong_languages([t.prompt for t in texts], [t.answer for t in texts])
    why["wrong_language"] = {n: found for n, found in enumerate(languages) if found is not None}
    for number, one in enumerate(texts):
        refused = refusal(one.answer)
        if refused is not None:
            why["refusals"][number] = repr(refused)
        if one.finish_reason == "length":
            why["truncated"][number] = "finish_reason length"
        if one.flags:
            why["flagged"][number] = ", ".join(one.flags)
    why["strange_subject"] = _strange(seen, features)
    why["other_teacher"] = _other_teacher(seen, shifts)
    of = {"other_teacher": len(seen.measures)}
    return [_finding(kind, why[kind], of.get(kind, len(texts)), texts) for kind in KINDS]


def _strange(seen: _Seen, features: Any) -> dict[int, str]:
    """By prompt, by prompt and answer, and where every row has labels by what the teacher considered.

    With sentence embeddings of the prompts a group is found that no prompt names.
    """
    texts = seen.texts
    written = [[t.prompt or t.answer for t in texts], [f"{t.prompt} {t.answer}" for t in texts]]
    spaces = [dense(one, features) for one in written]
    if len(seen.measures) == len(texts):
        spaces.append(of_candidates([one.ids for one in seen.measures]))
    found = strange_subject(spaces, [dict(t.source) | ({"domain": t.domain} if t.domain else {}) for t in texts])
    if features == "embeddings":
        group = isolated_group(spaces[0], spaces[1]).tolist()
        like = " and ".join(repr(written[0][n][:QUOTED]) for n in group[:2])
        why = f"one of {len(group)} rows ({len(group) / len(texts):.1%}) far from the others, like {like}"
        for n in group:
            found.setdefault(n, why)
            why = "of the same group"
    return dict(sorted(found.items()))


def _twins(written: Sequence[str], of: Sequence[str], texts: Sequence[Text]) -> dict[int, str]:
    found = enumerate(twins(written, of))
    return {n: f"nearly {texts[first].prompt_id}" for n, first in found if first is not None}


def _other_teacher(seen: _Seen, shifts: Sequence[GroupShift]) -> dict[int, str]:
    found = {
        one.number: f"entropy {one.entropy / one.targets:.2f}, surprise {one.surprise / one.targets:.2f} nats"
        for one, odd in zip(seen.measures, other_teacher(seen.measures), strict=True)
        if odd
    }
    for shift in shifts:
        for one in seen.measures:
            if dict(seen.texts[one.number].source).get(shift.by) == shift.group:
                found.setdefault(one.number, f"{shift.by} {shift.group}: {shift.measure} {shift.difference:+.1f} sd")
    return dict(sorted(found.items()))


def _finding(kind: str, why: Mapping[int, str], of: int, texts: Sequence[Text]) -> Finding:
    share = wilson(len(why), of) if of else None
    examples = tuple(Example(texts[n].key, texts[n].prompt_id, reason) for n, reason in list(why.items())[:EXAMPLES])
    return Finding(
        kind=kind,
        meaning=KINDS[kind],
        rows=len(why),
        of=of,
        share=share.value if share else 0.0,
        low=share.low if share else 0.0,
        high=share.high if share else 1.0,
        warn=kind not in EXPECTED and len(why) >= WARN * of > 0,
        examples=examples,
    )


def _label_figures(measures: Sequence[RowMeasures]) -> dict[str, float]:
    """Means over tokens: entropy and surprise in nats, tail mass, probability and success of the best candidate."""
    if not measures:
        return {}
    tokens = float(as_numbers(measures, "targets").sum())
    names = {
        "entropy": "entropy",
        "nll": "surprise",
        "tail_mass": "tail",
        "best_probability": "best",
        "best_hit": "hits",
    }
    found = {name: float(as_numbers(measures, column).sum()) / tokens for name, column in names.items()}
    return found | {"captured_mass": 1 - found["tail_mass"]}


def _measures(found: Profile) -> dict[str, float | None]:
    """The numbers that `[gates]` ask for, by the name behind max_ and min_."""
    measures: dict[str, float | None] = {one.kind: one.share if one.of else None for one in found.findings}
    measures["captured_mass"] = found.labels.get("captured_mass")
    overall = found.ceilings[0] if found.ceilings else None
    measures["accuracy"] = None if overall is None else overall.accuracy.value
    calibration = None if overall is None else overall.calibration_error
    measures["calibration_error"] = None if calibration is None else calibration.value
    measures["production_auc"] = None if found.against is None else found.against.auc.value
    measures["production_coverage"] = None if found.against is None else found.against.coverage.value
    return measures
