"""Rows that another teacher may have made, and rows of a subject that the rest of the table knows nothing of.

Both ask how far a row lies from the bulk, and how far is far is taken from the bulk itself: the outer part of the
distances, without the outermost 5 %, is continued as an exponential, and what lies beyond the place where it leaves
one row in a thousand is far out. So there is no threshold on any scale, and up to 5 % of strange rows cannot hide
themselves; more than that are no outliers but a second half of the table, which the comparison of groups sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.profile_labels import RowMeasures, as_numbers

LEAST_ROWS = 40
LEFT = 1e-3
"""Of the rows of a clean table this share would be called far out."""
NEIGHBOURS = 0.05
"""A subject smaller than this share of the rows can be strange; its own rows do not count as neighbours."""
LEAST_GROUP = 5
SURE = 6.0
LARGE = 1.0


def far_out_beyond(distances: NDArray[np.float64]) -> float:
    """The distance beyond which one row in a thousand would lie, if the tail went on as it begins."""
    inner, outer = np.quantile(distances, [0.8, 0.95])
    return float(outer + (outer - inner) / np.log(0.2 / 0.05) * np.log(0.05 / LEFT))


def far_out(distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the distances lie beyond that."""
    return np.asarray(distances > far_out_beyond(distances))


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
    shapes = np.stack([row.shapes for row in measures])
    for number, name in enumerate(("tail at its entropy", "slope at its entropy")):
        sums, counts = shapes[:, number, :, 0], shapes[:, number, :, 1]
        usual = sums.sum(axis=0) / counts.sum(axis=0).clip(1)
        found[name] = (sums - counts * usual).sum(axis=1) / counts.sum(axis=1).clip(1)
    return {name: _standard(values, targets) for name, values in found.items()}


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
        return np.asarray(centred / max(_spread(centred), 1e-9))
    few, many = 1 / targets[short].mean(), 1 / targets[~short].mean()
    noise = max((_spread(centred[short]) ** 2 - _spread(centred[~short]) ** 2) / (few - many), 0.0)
    between = max(_spread(centred) ** 2 - noise * float((1 / targets).mean()), 0.0)
    return np.asarray(centred / np.sqrt(between + noise / targets).clip(1e-9))


def _spread(values: NDArray[np.float64]) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def other_teacher(measures: Sequence[RowMeasures]) -> NDArray[np.bool_]:
    """Which rows have labels unlike the others': robust Mahalanobis distance over the features, far out."""
    if len(measures) < LEAST_ROWS:
        return np.zeros(len(measures), dtype=bool)
    from sklearn.covariance import MinCovDet

    columns = np.stack(list(features(measures).values()), axis=1)
    columns = columns[:, columns.std(axis=0) > 0]
    fitted = MinCovDet(random_state=0, support_fraction=0.8).fit(columns)
    return far_out(np.sqrt(fitted.mahalanobis(columns)))


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
    difference = float(np.median(one) - np.median(rest)) / max(_spread(rest), 1e-9)
    z = float((one.mean() - rest.mean()) / np.sqrt(one.var() / len(one) + rest.var() / len(rest) + 1e-12))
    if abs(difference) < LARGE or abs(z) < SURE:
        return None
    return GroupShift(by, group, int(inside.sum()), name, difference, z)


def strange_subject(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows are far even from their nearest 5 % of the rows; `vectors` are unit vectors, [rows, dimensions]."""
    if len(vectors) < LEAST_ROWS:
        return np.zeros(len(vectors), dtype=bool)
    neighbours = max(int(NEIGHBOURS * len(vectors)), 2)
    distances = np.empty(len(vectors))
    for start in range(0, len(vectors), 1024):
        near = 1 - vectors[start : start + 1024] @ vectors.T
        distances[start : start + 1024] = np.partition(near, neighbours, axis=1)[:, neighbours]
    return far_out(distances)
