"""Rows that another teacher may have made.

The question is whether more rows lie far out than the tail of the others leads one to expect. The tail is taken from
the table itself (from its 80 % to its 95 % quantile, continued as an exponential), so there is no threshold on any
scale; rows count when so many beyond one place are a chance of one in a hundred for the whole table, and at most a
tenth of them are expected there. Up to 5 % of strange rows cannot hide themselves that way; more than that are a second
half of the table, which the comparison of groups sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.profile_labels import RowMeasures, as_numbers

LEAST_ROWS = 40
INNER, OUTER = 0.8, 0.95
ALPHA = 0.01
LEAST_GROUP = 5
LEAST_TOKENS = 8
SURE = 5.0
LARGE = 1.0


def tail_scale(distances: NDArray[np.float64]) -> tuple[float, float]:
    """(95 % quantile, scale) of the exponential that the tail goes on as."""
    inner, outer = np.quantile(distances, [INNER, OUTER])
    return float(outer), float(max(outer - inner, 1e-9) / np.log((1 - INNER) / (1 - OUTER)))


def far_out(distances: NDArray[np.float64], tests: int = 1) -> NDArray[np.bool_]:
    """Which rows are more than can be expected so far out: none, or three or more. `tests` such questions are asked."""
    outer, scale = tail_scale(distances)
    order = np.argsort(-distances, kind="stable")
    most = int((1 - OUTER) * len(distances))
    for count in range(most, 2, -1):
        expected = len(distances) * (1 - OUTER) * math.exp(-(distances[order[count - 1]] - outer) / scale)
        if expected <= count / 10 and _at_least(count, expected) < ALPHA / tests / most:
            return np.isin(np.arange(len(distances)), order[:count])
    return np.zeros(len(distances), dtype=bool)


def _at_least(count: int, expected: float) -> float:
    """The chance of `count` or more where `expected` are (Poisson)."""
    from scipy.stats import poisson

    return float(poisson.sf(count - 1, expected))


@dataclass(frozen=True, slots=True)
class GroupShift:
    """A group of rows (one run, endpoint, day …) whose labels differ from the rest's: in what, by how many standard
    deviations of a row, how sure (z)."""

    by: str
    group: str
    rows: int
    measure: str
    difference: float
    z: float


def features(measures: Sequence[RowMeasures]) -> dict[str, NDArray[np.float64]]:
    """How the teacher of each row speaks, [rows] each, in robust standard units.

    Entropy and likelihood depend on the subject too; tail and slope at the same entropy, calibration and the rarity of
    the candidates hardly do: they are the teacher's hand.
    """
    targets = as_numbers(measures, "targets").astype(float)
    entropy, surprise = as_numbers(measures, "entropy"), as_numbers(measures, "surprise")
    spread = as_numbers(measures, "spread").clip(1e-6)
    found = {
        "entropy": entropy / targets,
        "calibration": (surprise - entropy) / np.sqrt(spread),
        "best candidate": np.log((as_numbers(measures, "best") / targets).clip(1e-6)),
        "rarity of candidates": _rarity(measures),
    }
    shaped: dict[str, NDArray[np.float64]] = {}
    shapes = np.stack([row.shapes for row in measures])
    for number, name in enumerate(("tail at its entropy", "slope at its entropy")):
        sums, counts = shapes[:, number, :, 0], shapes[:, number, :, 1]
        usual = sums.sum(axis=0) / counts.sum(axis=0).clip(1)
        used = counts.sum(axis=1)
        off = (sums - counts * usual).sum(axis=1) / used.clip(1)
        shaped[name] = _standard(np.where(used < LEAST_TOKENS, np.median(off), off), used.clip(1))
    return {name: _standard(values, targets) for name, values in found.items()} | shaped


def _rarity(measures: Sequence[RowMeasures]) -> NDArray[np.float64]:
    """Mean −log share of rows in which a candidate of this row is a candidate too."""
    largest = max(int(row.ids.max(initial=0)) for row in measures)
    rows_with = np.zeros(largest + 1)
    for row in measures:
        rows_with[row.ids[row.ids >= 0]] += 1
    return np.array([-np.log(rows_with[row.ids[row.ids >= 0]] / len(measures)).mean() for row in measures])


def _standard(values: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Robust z: median and spread of the rows, where a short row may lie further out, as means of few tokens do."""
    centred = values - np.median(values)
    short = targets <= np.median(targets)
    if short.all() or not short.any():
        return np.asarray(centred / max(spread(centred), 1e-9))
    few, many = 1 / targets[short].mean(), 1 / targets[~short].mean()
    noise = max((spread(centred[short]) ** 2 - spread(centred[~short]) ** 2) / (few - many), 0.0)
    between = max(spread(centred) ** 2 - noise * float((1 / targets).mean()), 0.0)
    return np.asarray(centred / np.sqrt(between + noise / targets).clip(1e-9))


def spread(values: NDArray[np.float64]) -> float:
    """A standard deviation that a few strange values hardly move: from the median distance to the median."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def other_teacher(measures: Sequence[RowMeasures]) -> NDArray[np.bool_]:
    """Which rows have labels unlike the others': too many far out in one feature, on one side."""
    odd = np.zeros(len(measures), dtype=bool)
    if len(measures) >= LEAST_ROWS:
        columns = features(measures)
        for values in columns.values():
            odd |= far_out(values, 2 * len(columns)) | far_out(-values, 2 * len(columns))
    return odd


def group_shifts(
    measures: Sequence[RowMeasures], sources: Sequence[Mapping[str, str]], domains: Sequence[str | None]
) -> list[GroupShift]:
    """Groups of at least five rows, at most half of the table, that differ from the rest by a row's standard deviation.

    `sources` and `domains` are those of the measured rows. Where rows name a domain, each is compared within it.
    """
    if len(measures) < LEAST_ROWS:
        return []
    columns = {name: _within(values, domains) for name, values in features(measures).items()}
    found: list[GroupShift] = []
    seen: set[bytes] = set()
    for by in dict.fromkeys(name for source in sources for name in source):
        values = np.array([source.get(by, "") for source in sources])
        for group in np.unique(values):
            inside = values == group
            if LEAST_GROUP <= inside.sum() <= len(values) / 2 and inside.tobytes() not in seen:
                seen.add(inside.tobytes())
                found += [shift for name in columns if (shift := _shift(columns[name], inside, by, str(group), name))]
    return found


def _within(values: NDArray[np.float64], domains: Sequence[str | None]) -> NDArray[np.float64]:
    result = values.copy()
    names = np.array([domain or "" for domain in domains])
    for name in np.unique(names):
        rows = names == name
        if rows.sum() >= 2 * LEAST_GROUP:
            result[rows] -= np.median(values[rows])
    return result


def _shift(values: NDArray[np.float64], inside: NDArray[np.bool_], by: str, group: str, name: str) -> GroupShift | None:
    one, rest = np.clip(values[inside], -8, 8), np.clip(values[~inside], -8, 8)
    difference = float(np.median(one) - np.median(rest)) / max(spread(rest), 1e-9)
    z = float((one.mean() - rest.mean()) / np.sqrt(one.var() / len(one) + rest.var() / len(rest) + 1e-12))
    if abs(difference) < LARGE or abs(z) < SURE:
        return None
    return GroupShift(by, group, int(inside.sum()), name, difference, z)
