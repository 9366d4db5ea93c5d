"""Does what was collected look like what the student will meet? A table's prompts against a file of production's.

A classifier two-sample test says whether the two can be told apart (Lopez-Paz and Oquab 2017), nearest neighbours say
which of production's prompts the table has nothing like, clusters say what they are about, and a plan picks from a pool
the prompts that bring the table nearest to production.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import StorageError, mapped
from storage.profile_embed import dense, sparse
from storage.profile_outliers import OUTER
from storage.profile_read import Text
from storage.profile_reference import Estimate, wilson
from storage.profile_text import words

MOST = 5_000
"""Prompts of each side that are compared, chosen at random."""
POOL = 20_000
LEAST = 20
FOLDS = 5
CLUSTERS = 6
EXAMPLES = 3
TELLS_APART = 0.52
"""From this lower bound of the AUC on, a profile warns: a fifth of foreign prompts alone brings an AUC to 0.6."""
MORE_THAN_CHANCE = 0.08
"""A share that is certainly above this; 0.05 is what two halves of one file have."""
STRAY = 0.1
"""Twice the share of prompts that have no near neighbour where both sides are of one kind."""


class PromptsUnreadable(StorageError):
    """A file of prompts to compare with cannot be used."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How many prompts of which pool to pick, and where to write their lines."""

    count: int
    pool: Path
    out: Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """A subject by the words that set it apart, with its share of either side and prompts nearest to its middle.

    `lacks` says which side has too little of it.
    """

    words: tuple[str, ...]
    production: float
    table: float
    lacks: Literal["table", "production"]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan picked. Coverage is a share of production's prompts, likeness their mean cosine to the nearest."""

    picked: int
    out: str
    coverage_before: float
    coverage_after: float
    likeness_before: float
    likeness_after: float


@dataclass(frozen=True, slots=True)
class Against:
    """The comparison. `auc` is 0.5 where the two sides cannot be told apart; `coverage` the share of production's
    prompts that the table has near neighbours of, `foreign` the share of the table's that production has none of. Near
    is as near as 95 % of production's prompts have another of production, so a perfect match covers 95 %."""

    production: str
    prompts: int
    table_prompts: int
    auc: Estimate
    coverage: Estimate
    foreign: Estimate
    clusters: tuple[Cluster, ...]
    uncovered: tuple[str, ...]
    planned: Planned | None

    @property
    def warn(self) -> bool:
        """Whether a person should look: only at what the intervals make certain."""
        return (
            self.auc.low > TELLS_APART
            or self.coverage.high < 1 - STRAY
            or self.foreign.low > STRAY
            or any(cluster.lacks == "table" for cluster in self.clusters)
        )


def read_prompts(path: Path) -> list[tuple[str, str]]:
    """(text, line) of each prompt in a file of JSON lines with `prompt`, `messages` or `text`.

    Raises PromptsUnreadable, naming the line.
    """
    found = []
    with mapped(path):
        lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = record.get("prompt") or record.get("text")
            if text is None:
                text = "\n".join(message["content"] for message in record["messages"])
            found.append((str(text), line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptsUnreadable(
                f'{path.name}:{number} is not a prompt: give one JSON object a line, such as {{"prompt": "…"}}.'
            ) from error
    return found


def compare_with(
    texts: Sequence[Text], production: Path, *, plan: Plan | None, features: Literal["ngrams", "embeddings"]
) -> Against:
    """Compare the table's prompts (each once) with production's.

    Raises PromptsUnreadable for files that are none, or where a side has fewer than twenty prompts.
    """
    ours = _some(list({one.prompt_id: one.prompt or one.answer for one in texts}.values()))
    theirs = _some([text for text, _ in read_prompts(production)])
    if min(len(ours), len(theirs)) < LEAST:
        raise PromptsUnreadable(
            f"Both sides need {LEAST} prompts: the table has {len(ours)}, {production.name} {len(theirs)}."
        )
    pool = [] if plan is None else read_prompts(plan.pool)[:POOL]
    vectors = dense([*ours, *theirs, *(text for text, _ in pool)], features)
    ours_v, theirs_v, pool_v = np.split(vectors, [len(ours), len(ours) + len(theirs)])
    reach = float(np.quantile(_nearest(theirs_v, theirs_v, itself=True), OUTER))
    covered = _nearest(theirs_v, ours_v) <= reach
    foreign = _nearest(ours_v, theirs_v) > reach
    order = np.argsort(-_nearest(theirs_v, ours_v))
    auc, scores = _told_apart(ours, theirs)
    return Against(
        production=str(production),
        prompts=len(theirs),
        table_prompts=len(ours),
        auc=auc,
        coverage=wilson(int(covered.sum()), len(theirs)),
        foreign=wilson(int(foreign.sum()), len(ours)),
        clusters=tuple(_clusters(ours, theirs, ours_v, theirs_v, scores)),
        uncovered=tuple(theirs[i][:200] for i in order[:EXAMPLES] if not covered[i]),
        planned=None if plan is None else _pick(plan, pool, pool_v, ours_v, theirs_v, reach),
    )


def _some(texts: list[str]) -> list[str]:
    kept = [text for text in texts if text.strip()]
    if len(kept) <= MOST:
        return kept
    return [kept[i] for i in np.sort(np.random.default_rng(0).permutation(len(kept))[:MOST])]


def _nearest(from_: NDArray[Any], to: NDArray[Any], *, itself: bool = False) -> NDArray[np.float64]:
    """Distance (1 − cosine) of each vector to its nearest neighbour on the other side."""
    found = np.empty(len(from_))
    for start in range(0, len(from_), 1024):
        alike = from_[start : start + 1024] @ to.T
        if itself:
            alike[np.arange(len(alike)), np.arange(start, start + len(alike))] = -2
        found[start : start + 1024] = 1 - alike.max(axis=1)
    return found


def _told_apart(ours: Sequence[str], theirs: Sequence[str]) -> tuple[Estimate, NDArray[np.float64]]:
    """(AUC, scores of ours and theirs) of a logistic regression on hashed n-grams, out of fold.

    The 95 % interval is that of Hanley and McNeil (1982).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    side = np.array([0] * len(ours) + [1] * len(theirs))
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200)
    # a prompt that both sides have is kept in one fold: learned as one side's, it would be told wrong as the other's
    same = np.unique([*ours, *theirs], return_inverse=True)[1]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    features = sparse([*ours, *theirs])
    scores = cross_val_predict(model, features, side, groups=same, cv=folds, method="decision_function")
    auc = float(roc_auc_score(side, scores))
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    m, n = len(ours), len(theirs)
    variance = (auc * (1 - auc) + (n - 1) * (first - auc**2) + (m - 1) * (second - auc**2)) / (m * n)
    half = 1.96 * float(np.sqrt(max(variance, 0.0)))
    return Estimate(auc, max(auc - half, 0.0), min(auc + half, 1.0)), np.asarray(scores)


def _clusters(
    ours: list[str], theirs: list[str], ours_v: NDArray[Any], theirs_v: NDArray[Any], scores: NDArray[np.float64]
) -> list[Cluster]:
    """What one side has and the other lacks, by subject: the prompts that the classifier is surer of than of 95 % of
    the other side's, where there are certainly more than chance gives, put into at most six clusters."""
    everywhere = Counter(word for text in [*ours, *theirs] for word in set(words(text)))
    table, production = scores[: len(ours)], scores[len(ours) :]
    found: list[Cluster] = []
    sides: tuple[tuple[Literal["table", "production"], Any, Any, Any, Any, Any], ...] = (
        ("table", theirs, theirs_v, production, ours_v, table),
        ("production", ours, ours_v, -table, theirs_v, -production),
    )
    for lacks, texts, vectors, own, other_vectors, other in sides:
        edge = float(np.quantile(other, OUTER))
        far = np.flatnonzero(own > edge)
        if wilson(len(far), len(texts)).low <= MORE_THAN_CHANCE:
            continue
        for inside, beyond in _split(vectors[far], other_vectors[other > edge]):
            here = [texts[i] for i in far[inside]]
            shares = len(here) / len(texts), beyond / len(other)
            production_share, table_share = shares if lacks == "table" else shares[::-1]
            shown = tuple(text[:200] for text in here[:EXAMPLES])
            telling = _telling(here, everywhere, len(ours) + len(theirs))
            found.append(Cluster(telling, production_share, table_share, lacks, shown))
    return found


def _split(vectors: NDArray[Any], others: NDArray[Any]) -> list[tuple[NDArray[np.int64], int]]:
    """Clusters, largest first, members nearest to the middle first, each with how many of `others` fall to it."""
    from sklearn.cluster import KMeans

    fitted = KMeans(int(np.clip(len(vectors) // 8, 1, CLUSTERS)), n_init=3, random_state=0).fit(vectors)
    falls = fitted.predict(others) if len(others) else np.empty(0, dtype=int)
    found = []
    for number, centre in enumerate(fitted.cluster_centers_):
        inside = np.flatnonzero(fitted.labels_ == number)
        inside = inside[np.argsort(np.linalg.norm(vectors[inside] - centre, axis=1), kind="stable")]
        found.append((inside, int((falls == number).sum())))
    return sorted(found, key=lambda one: -len(one[0]))


def _telling(texts: Sequence[str], everywhere: Counter[str], total: int) -> tuple[str, ...]:
    """The words that are more frequent here than elsewhere, by log-likelihood ratio."""
    here = Counter(word for text in texts for word in set(words(text)) if word[0].isalpha() and len(word) > 2)
    scored = {
        word: count * np.log((count / len(texts)) / (everywhere[word] / total))
        for word, count in here.items()
        if count > 1 or len(texts) < 4
    }
    return tuple(sorted(scored, key=lambda word: -scored[word])[:5])


def _pick(
    plan: Plan,
    pool: list[tuple[str, str]],
    pool_v: NDArray[Any],
    ours_v: NDArray[Any],
    theirs_v: NDArray[Any],
    reach: float,
) -> Planned:
    """Greedy facility location: each pick is the prompt that brings production's prompts nearest on average.

    The mean likeness of production's prompts to their nearest in table and picks is submodular, so the greedy choice
    is within 1 − 1/e of the best (Nemhauser et al. 1978).
    """
    if not pool:
        raise PromptsUnreadable(f"{plan.pool.name} holds no prompts to pick from.")
    nearest = 1 - _nearest(theirs_v, ours_v)
    before = nearest
    alike = (theirs_v @ pool_v.T).astype(np.float32)  # [production, pool]
    picks: list[int] = []
    while len(picks) < min(plan.count, len(pool)):
        gain = np.maximum(alike - nearest[:, None].astype(np.float32), 0).sum(axis=0)
        gain[picks] = -1
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        picks.append(best)
        nearest = np.maximum(nearest, alike[:, best])
    with mapped(plan.out):
        plan.out.write_text("".join(pool[i][1] + "\n" for i in picks), "utf-8")
    covered = [float((likeness >= 1 - reach).mean()) for likeness in (before, nearest)]
    return Planned(len(picks), str(plan.out), covered[0], covered[1], float(before.mean()), float(nearest.mean()))
