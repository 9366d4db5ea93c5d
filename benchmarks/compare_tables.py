"""Two tables of the same prompts from two engines with the same weights: are the labels the same? (by hand)

python -m benchmarks.compare_tables TABLE OTHER. Sequences are compared only as far as their tokens are the same.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.query import sql

TOP = 8
LIKELY = 0.01
_COLUMNS = "prompt_id, sample_index, k, prompt_token_ids, token_ids, top_ids, top_logprobs, label_set"


def rows(table: str) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows by prompt and sample."""
    found = sql(table, f"SELECT {_COLUMNS} FROM soft_labels").to_pylist()
    return {(row["prompt_id"], row["sample_index"]): row for row in found}


def candidates(row: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log-probabilities [T, k]."""
    shape = (len(row["token_ids"]), row["k"])
    return np.reshape(row["top_ids"], shape), np.reshape(row["top_logprobs"], shape)


def positions(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[dict[int, float], dict[int, float]]]:
    """Candidates of both rows, position by position, while the tokens before are the same."""
    ids, logprobs = candidates(one)
    other_ids, other_logprobs = candidates(other)
    for i in range(min(len(ids), len(other_ids))):
        yield dict(zip(ids[i], logprobs[i], strict=True)), dict(zip(other_ids[i], other_logprobs[i], strict=True))
        if one["token_ids"][i] != other["token_ids"][i]:
            return


def compare(table: str, other: str) -> dict[str, Any]:
    """What was compared and how far it is apart, nats; `tie` is the widest gap behind which an order differs."""
    left, right = rows(table), rows(other)
    both = sorted(left.keys() & right.keys())
    apart: list[float] = []
    ties: list[float] = [0.0]
    same_top = compared = 0
    for key in both:
        for mine, theirs in positions(left[key], right[key]):
            compared += 1
            top = min(TOP, len(mine))
            best, best_other = list(mine)[:top], list(theirs)[:top]
            same_top += set(best) == set(best_other)
            last = min(mine[token] for token in best)
            ties += [abs(mine[token] - last) for token in set(best_other) - set(best) if token in mine]
            likely = [token for token in mine if mine[token] > np.log(LIKELY) and token in theirs]
            apart += [abs(mine[token] - theirs[token]) for token in likely]
    return {
        "rows": f"{len(both)} of {len(left)} and {len(right)}",
        "same prompt ids": sum(left[k]["prompt_token_ids"] == right[k]["prompt_token_ids"] for k in both),
        "same token ids": sum(left[k]["token_ids"] == right[k]["token_ids"] for k in both),
        "positions": compared,
        f"same top {TOP}": same_top,
        "tie": round(max(ties), 4),
        f"candidates of p > {LIKELY}": len(apart),
        "largest difference": round(max(apart), 4),
        "99 %": round(float(np.quantile(apart, 0.99)), 4),
        "mean": round(float(np.mean(apart)), 5),
        "within 0.05": f"{sum(one <= 0.05 for one in apart)}",
    }


if __name__ == "__main__":
    for name, value in compare(*sys.argv[1:3]).items():
        print(f"{name:26} {value}")
