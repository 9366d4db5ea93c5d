"""Soft labels in Axolotl's two forms: raw, as its knowledge-distillation plugin reads them, and prepared by it.

Raw rows are the distributions of the last tokens of a chat. Prepared ones lie a position to the left of their token and
were rescaled to sum to one over the candidates: nothing of the tail is left in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ForeignDataError
from storage.foreign import ForeignSequence, labelled, lines

PREPARED = {"input_ids", "target_token_ids", "target_logprobs", "target_mask"}
ChatIds = Callable[[Sequence[dict[str, Any]]], list[int]]
Candidates = list[tuple[list[int], list[float]]]
"""Ids and log-probabilities of each position; both empty where the engine gave none."""


def axolotl(files: list[Path], chat_ids: ChatIds | None) -> Iterator[ForeignSequence]:
    """The sequences of a set; `chat_ids` tokenizes chats that come without ids. Raises ForeignDataError."""
    for number, line in enumerate(lines(files, None)):
        if line.keys() >= PREPARED:
            yield _prepared(number, line)
            continue
        field = next((name for name in line if name.endswith("logprobs")), None)
        if field is None:
            raise ForeignDataError(
                f"{files[0]} has neither the columns {', '.join(sorted(PREPARED))} of a prepared set nor the column "
                "`…logprobs` of a raw one."
            )
        if chat_ids is None and "input_ids" not in line:
            raise ForeignDataError(
                f"{files[0]} has chats and no token ids: give the teacher's tokenizer.json by --tokenizer, with its "
                "chat template beside it."
            )
        yield _raw(number, line, line[field], chat_ids)


def _prepared(number: int, line: dict[str, Any]) -> ForeignSequence:
    ids = np.asarray(line["input_ids"], dtype=np.int32)
    slots = np.asarray(line["target_mask"], dtype=bool)[: len(ids) - 1]
    mask = np.atleast_1d(slots.any(axis=1))
    there = np.flatnonzero(mask)
    if not len(there) or not mask[there[0] :].all():
        return ForeignSequence(number, ids[:1], None, "its targets are not one run of tokens to the end")
    part = slice(there[0], len(mask))
    logprobs = np.asarray(line["target_logprobs"], dtype=np.float32)[: len(mask)][part]
    logprobs = np.where(slots[part], logprobs, np.float32("-inf"))  # a padded place is no candidate
    top_ids = np.asarray(line["target_token_ids"], dtype=np.int32)[: len(mask)][part]
    return labelled(number, ids, int(there[0]) + 1, top_ids, logprobs)


def _raw(number: int, line: dict[str, Any], rows: Any, chat_ids: ChatIds | None) -> ForeignSequence:
    try:
        candidates = _candidates(rows, line.get("target_token_ids"))
        ids = np.asarray(_ids(line, chat_ids), dtype=np.int32)
    except (ForeignDataError, KeyError, TypeError, ValueError, IndexError) as error:
        return ForeignSequence(number, np.zeros(1, dtype=np.int32), None, f"it is not of Axolotl's form: {error}")
    filled = [bool(row_ids) for row_ids, _ in candidates]
    first = len(ids) - len(candidates)  # the token that the first row is the distribution of
    if first < 0 or not any(filled):
        return ForeignSequence(number, ids[:1], None, f"{len(candidates)} distributions for {len(ids)} tokens")
    skipped = max(filled.index(True), 1 - first)  # nothing comes before the first token of all
    if not all(filled[skipped:]) or skipped >= len(candidates):
        return ForeignSequence(number, ids[:1], None, "its targets are not one run of tokens to the end")
    top_ids, logprobs = _arrays(candidates[skipped:])
    return labelled(number, ids, first + skipped, top_ids, logprobs)


def _candidates(rows: Any, token_ids: Any) -> Candidates:
    """Of either raw form: {"token": "token_id:5", "logprob": −0.1}, or numbers beside a column of their ids."""
    if token_ids is not None:
        if len(token_ids) != len(rows):
            raise ValueError(f"{len(rows)} rows of logprobs and {len(token_ids)} of target_token_ids")
        return [(list(ids or ()), list(logs or ())) for ids, logs in zip(token_ids, rows, strict=True)]
    return [
        ([int(c["token"].split(":")[1]) for c in row or ()], [float(c["logprob"]) for c in row or ()]) for row in rows
    ]


def _ids(line: dict[str, Any], chat_ids: ChatIds | None) -> list[int]:
    if "input_ids" in line:
        return list(line["input_ids"])
    field = next((name for name in line if name.startswith(("messages", "conversations"))), None)
    if field is None:
        raise ForeignDataError("it has neither input_ids nor messages")
    assert chat_ids is not None
    return chat_ids(line[field])


def _arrays(candidates: Candidates) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(T, k) ids and log-probabilities, best first. k is the most frequent number of candidates: where a row has one
    more, that is the realised token, added by the engine from beyond the k best."""
    k = Counter(len(ids) for ids, _ in candidates).most_common(1)[0][0]
    top_ids = np.full((len(candidates), k), -1, dtype=np.int32)
    logprobs = np.full((len(candidates), k), -np.inf, dtype=np.float32)
    for position, (ids, logs) in enumerate(candidates):
        best = sorted(zip(logs, ids, strict=True), key=lambda pair: -pair[0])[:k]
        top_ids[position, : len(best)] = [token for _, token in best]
        logprobs[position, : len(best)] = [log for log, _ in best]
    return top_ids, logprobs
