"""Rows of a subject that the rest of the table knows nothing of: single rows, groups with a name, groups without one.

A small group is found by sentence embeddings of its prompts and texts: of all clusters that hold 1.5 to 5 % of the
rows, the one whose rows have the least like neighbours outside it is compared with how like the
table's rows are to their nearest. Hashed n-grams do not show such groups, so they are not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.profile_outliers import LARGE, LEAST_ROWS, OUTER, far_out, spread

NEAREST = 0.02, 0.1
CHANCE = 5e-4
"""That one of a sound table's named groups lies so far out."""
LEAST_SHARE, MOST_SHARE, LEAST = 0.015, 0.05, 5
NEIGHBOURS = 10
ISOLATED = 2.3
"""Robust standard deviations of a row: of 150 sound tables of 300 docstrings, in four a group lay further out."""
CLUSTERED = 2_000
"""Rows that are clustered; of a larger table a sample, which holds 40 rows of a group of 2 %."""


def strange_subject(spaces: Sequence[NDArray[Any]], sources: Sequence[Mapping[str, str]]) -> dict[int, str]:
    """Row → why its text is unlike the table's.

    Each space is unit vectors [rows, dimensions] of the rows: of their prompts, their texts, the tokens that the
    teacher considered. A row's distance is the mean over spaces, in robust standard units, of 1 − cosine to its nearest
    rows from the 2 % to the 10 % nearest: a small group's own rows do not count. Rows are strange when too many lie far
    out, or when a small group by its `sources` (domain, run, day …) does as a whole, by the mean, its prompts or what
    the teacher considered: many rows that each are a little strange are certain together.
    """
    from scipy.stats import norm

    found: dict[int, str] = {}
    if len(sources) < LEAST_ROWS:
        return found
    parts = [_distances(vectors) for vectors in spaces]
    parts = [(part - np.median(part)) / max(spread(part), 1e-9) for part in parts]
    distances = np.mean(parts, axis=0)
    for row in np.flatnonzero(far_out(distances)):
        found[int(row)] = "far from all others"
    groups, views = list(_small_groups(sources)), [distances, parts[0], *parts[2:]]
    certain = float(norm.isf(CHANCE / max(len(groups) * len(views), 1)))
    for by, group, inside in groups:
        if any(_lies_out(view, inside, certain) for view in views):
            for row in np.flatnonzero(inside):
                found.setdefault(int(row), f"{by} {group}: {inside.sum()} rows far from the others")
    return dict(sorted(found.items()))


def _lies_out(distances: NDArray[np.float64], inside: NDArray[np.bool_], certain: float) -> bool:
    """Whether a group's mean is a row's standard deviation above the others' median, and `certain` of its own."""
    rest = distances[~inside]
    difference = (distances[inside].mean() - np.median(rest)) / max(spread(rest), 1e-9)
    return bool(difference >= LARGE and difference * np.sqrt(inside.sum()) >= certain)


def isolated_group(prompts: NDArray[Any], texts: NDArray[Any]) -> NDArray[np.intp]:
    """The rows of the most isolated small group, by unit vectors [rows, dimensions] of prompts and of whole texts.

    The prompts count twice: an answer of a small teacher wanders off. None where it lies no further out than sound
    tables' do, or where 5 % of the rows are fewer than five.
    """
    vectors = np.concatenate([prompts * np.sqrt(2 / 3), texts * np.sqrt(1 / 3)], axis=1)
    sample = np.sort(np.random.default_rng(0).permutation(len(vectors))[:CLUSTERED])
    alike = vectors[sample] @ vectors[sample].T
    alike = (alike + alike.T) / 2
    np.fill_diagonal(alike, 1.0)
    own = np.sort(alike, axis=1)[:, -NEIGHBOURS - 1 : -1].mean(axis=1)
    isolation, inside = max(
        ((float(np.median(own)) - _nearest_outside(alike, members), members) for members in _clusters(alike)),
        key=lambda one: one[0],
        default=(0.0, np.zeros(0, dtype=np.intp)),
    )
    if isolation < ISOLATED * max(spread(own), 1e-9):
        return np.zeros(0, dtype=np.intp)
    if len(sample) == len(vectors):
        return inside
    nearest = np.concatenate([(part @ vectors[sample].T).argmax(axis=1) for part in np.array_split(vectors, 64)])
    return np.flatnonzero(np.isin(nearest, inside))


def _nearest_outside(alike: NDArray[Any], members: NDArray[np.intp]) -> float:
    outside = np.delete(alike[members], members, axis=1)
    return float(np.partition(outside, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:].mean())


def _clusters(alike: NDArray[Any]) -> Iterator[NDArray[np.intp]]:
    """Clusters on 1 − `alike` with LEAST_SHARE to MOST_SHARE of the rows and LEAST at least, by three ways to merge."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    rows = len(alike)
    least, most = max(LEAST, round(LEAST_SHARE * rows)), int(MOST_SHARE * rows)
    if most < least:
        return
    apart = squareform(1 - alike, checks=False)
    for way in ("average", "complete", "ward"):
        members: list[NDArray[np.intp]] = [np.array([row]) for row in range(rows)]
        for first, second, _, _ in linkage(apart, way):
            members.append(np.concatenate([members[int(first)], members[int(second)]]))
            if least <= len(members[-1]) <= most:
                yield np.sort(members[-1])


def _distances(vectors: NDArray[Any]) -> NDArray[np.float64]:
    rows = len(vectors)
    first, last = max(int(NEAREST[0] * rows), 1), max(int(NEAREST[1] * rows), 3)
    found = np.empty(rows)
    for start in range(0, rows, 1024):
        near = np.sort(1 - vectors[start : start + 1024] @ vectors.T, axis=1)
        found[start : start + 1024] = near[:, first + 1 : last + 1].mean(axis=1)
    return found


def _small_groups(sources: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Groups of at least three rows and at most 5 % of all."""
    for by in dict.fromkeys(name for source in sources for name in source):
        values = np.array([source.get(by, "") for source in sources])
        names, counts = np.unique(values, return_counts=True)
        for name, count in zip(names, counts, strict=True):
            if 3 <= count <= (1 - OUTER) * len(values):
                yield by, str(name), values == name
