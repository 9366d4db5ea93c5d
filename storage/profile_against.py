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
from storage.profile_outliers import OUTER, tail_scale
from storage.profile_read import Text
from storage.profile_reference import Estimate, wilson
from storage.profile_text import words

MOST = 5_000
"""Prompts of each side that are compared, chosen at random."""
POOL = 20_000
LEAST = 20
FOLDS = 5
CLUSTERS = 24
EXAMPLES = 3
TELLS_APART = 0.6
"""From this lower bound of the AUC on, a profile warns: below it a difference is certain but small."""
RARE = 4.0
STRAY = 1e-3
"""The share of production's prompts that would have no near neighbour among the others of production itself."""


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

    `lacks` says which side has too little of it, None where both have theirs.
    """

    words: tuple[str, ...]
    production: float
    table: float
    lacks: Literal["table", "production"] | None
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan picked. `coverage_before` and `coverage_after` are shares of production's prompts."""

    picked: int
    out: str
    coverage_before: float
    coverage_after: float


@dataclass(frozen=True, slots=True)
class Against:
    """The comparison. `auc` is 0.5 where the two sides cannot be told apart; `coverage` the share of production's
    prompts that the table has near neighbours of, `foreign` the share of the table's that production has none of."""

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
            or self.coverage.high < 0.99
            or self.foreign.low > 0.01
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
    outer, scale = tail_scale(_nearest(theirs_v, theirs_v, itself=True))
    reach = outer + scale * np.log((1 - OUTER) / STRAY)
    covered = _nearest(theirs_v, ours_v) <= reach
    foreign = _nearest(ours_v, theirs_v) > reach
    order = np.argsort(-_nearest(theirs_v, ours_v))
    return Against(
        production=str(production),
        prompts=len(theirs),
        table_prompts=len(ours),
        auc=_told_apart(ours, theirs),
        coverage=wilson(int(covered.sum()), len(theirs)),
        foreign=wilson(int(foreign.sum()), len(ours)),
        clusters=tuple(_clusters(ours, theirs, ours_v, theirs_v)),
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


def _told_apart(ours: Sequence[str], theirs: Sequence[str]) -> Estimate:
    """AUC of a logistic regression on hashed n-grams, out of fold; 95 % interval of Hanley and McNeil (1982)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    side = np.array([0] * len(ours) + [1] * len(theirs))
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, sparse([*ours, *theirs]), side, cv=folds, method="decision_function")
    auc = float(roc_auc_score(side, scores))
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    m, n = len(ours), len(theirs)
    variance = (auc * (1 - auc) + (n - 1) * (first - auc**2) + (m - 1) * (second - auc**2)) / (m * n)
    half = 1.96 * float(np.sqrt(max(variance, 0.0)))
    return Estimate(auc, max(auc - half, 0.0), min(auc + half, 1.0))


def _clusters(ours: list[str], theirs: list[str], ours_v: NDArray[Any], theirs_v: NDArray[Any]) -> list[Cluster]:
    """Subjects of both sides together; those that one side lacks first, then by their share of production."""
    from sklearn.cluster import KMeans

    texts, vectors = [*ours, *theirs], np.concatenate([ours_v, theirs_v])
    count = int(min(CLUSTERS, max(2, np.sqrt(len(texts) / 2))))
    fitted = KMeans(count, n_init=3, random_state=0).fit(vectors)
    production = np.arange(len(texts)) >= len(ours)
    everywhere = Counter(word for text in texts for word in set(words(text)))
    found = []
    for number in range(count):
        inside = fitted.labels_ == number
        shares = float(inside[production].mean()), float(inside[~production].mean())
        middle = np.argsort(np.linalg.norm(vectors - fitted.cluster_centers_[number], axis=1))
        lacks = _lacks(int(inside[production].sum()), len(theirs), int(inside[~production].sum()), len(ours))
        side = ~production if lacks == "production" else production if lacks == "table" else np.ones_like(production)
        shown = [texts[i][:200] for i in middle if inside[i] and side[i]][:EXAMPLES]
        telling = _telling([t for t, yes in zip(texts, inside, strict=True) if yes], everywhere, len(texts))
        found.append(Cluster(telling, *shares, lacks, tuple(shown)))
    return sorted(found, key=lambda c: (c.lacks != "table", c.lacks != "production", -c.production))


def _lacks(theirs: int, of_theirs: int, ours: int, of_ours: int) -> Literal["table", "production"] | None:
    """Which side has less than a quarter of the other's share, for certain: the intervals say so too."""
    production, table = wilson(theirs, of_theirs), wilson(ours, of_ours)
    if table.value * RARE < production.value and table.high < production.low:
        return "table"
    if production.value * RARE < table.value and production.high < table.low:
        return "production"
    return None


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
    before = float((nearest >= 1 - reach).mean())
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
    return Planned(len(picks), str(plan.out), before, float((nearest >= 1 - reach).mean()))
