"""Real teacher rows, and faults planted in a few of them: for the tests of `profile` and its benchmark."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from storage.codec import Labels, log_tail
from storage.rows import Row, rows_from_arrow

DATA = Path(__file__).parent / "data" / "teacher_rows.parquet"
REFUSALS = (
    "I'm sorry, but I can't assist with that request.",
    "I cannot fulfill your request. I am just an AI model, it is not within my programming.",
    "As an AI language model, I don't have personal opinions on this.",
    "I apologize, but I'm not able to provide that kind of content.",
    "Unfortunately, I am unable to help with this topic. Is there something else?",
    "I won't be able to write that for you.",
    "Sorry, we cannot answer this question because it goes against our usage policies.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "I must decline to answer that.",
    "I can't engage with this. Let's talk about something else instead.",
    "This prompt was blocked because of our content policy.",
    "I'm not comfortable discussing that subject, so I'd rather we talked about another one.",
)
NEAR = ("code", "numbers")
"""Everyday domains that are the technical rows' own subject: code, and arithmetic beside their mathematics."""
Rng = np.random.Generator


def teacher_rows() -> list[Row]:
    """Rows of Gemma 3 270M: technical English (domains network, files, …) and everyday English (sea, kitchen, …)."""
    return rows_from_arrow(pq.read_table(DATA))


def everyday(row: Row) -> bool:
    """Whether a row is of the second kind."""
    return row.prompt_licence == "CC0-1.0"


def looping(row: Row, rng: Rng) -> Row:
    """Its own words again and again: one word, a phrase or a sentence, after a sound start or from the beginning."""
    words = (row.completion or "so it goes on and on").split() or ["so", "it", "goes"]
    start = int(rng.integers(0, len(words)))
    phrase = " ".join(words[start : start + int(rng.choice([1, 3, 7, 12]))])
    sound = " ".join(words[: int(rng.integers(0, len(words)))])
    return replace(row, completion=f"{sound} {' '.join([phrase] * int(rng.integers(12, 30)))}")


def refusing(row: Row, rng: Rng) -> Row:
    """One of a dozen phrasings in place of the answer."""
    return replace(row, completion=str(rng.choice(REFUSALS)))


def hotter(row: Row, rng: Rng) -> Row:
    """A teacher that is less sure: p^(1/1.8) over the candidates, tail grown alike, tokens drawn from it."""
    return _tempered(row, rng, 1.8)


def colder(row: Row, rng: Rng) -> Row:
    """A teacher that is surer: p^(1/0.5)."""
    return _tempered(row, rng, 0.5)


def _tempered(row: Row, rng: Rng, temperature: float) -> Row:
    labels = row.labels
    assert labels is not None
    logs = labels.top_logprobs.astype(np.float64) / temperature
    tail = np.exp(labels.log_tail.astype(np.float64)) ** (1 / temperature)
    total = np.exp(logs).sum(axis=1) + tail
    logs = logs - np.log(total)[:, None]
    chance = np.exp(logs)
    picks = [int(rng.choice(labels.k + 1, p=np.append(p, max(1 - p.sum(), 0)))) for p in chance]
    inside = np.array(picks) < labels.k
    place = np.where(inside, picks, 0)
    steps = np.arange(len(labels))
    changed = Labels(
        token_ids=np.where(inside, labels.top_ids[steps, place], 7).astype(np.int32),
        token_logprobs=np.where(inside, logs[steps, place], np.log((tail / total) / 50)).astype(np.float32),
        token_ranks=np.where(inside, place + 1, 0).astype(np.int32),
        top_ids=labels.top_ids,
        top_logprobs=logs.astype(np.float32),
        log_tail=log_tail(logs),
    )
    return replace(row, labels=changed)


def other_vocabulary(row: Row, rng: Rng) -> Row:
    """A teacher with another tokenizer: the same shapes over other ids."""
    labels = row.labels
    assert labels is not None
    other = lambda ids: np.where(ids < 0, ids, (ids * 48271 + 11) % 150_000).astype(np.int32)  # noqa: E731
    return replace(row, labels=replace(labels, token_ids=other(labels.token_ids), top_ids=other(labels.top_ids)))


def foreign_tokens(row: Row, rng: Rng) -> Row:
    """Labels whose tokens another model wrote: the distributions of this teacher, tokens drawn at random of them."""
    labels = row.labels
    assert labels is not None
    place = rng.integers(0, labels.k, size=len(labels))
    steps = np.arange(len(labels))
    changed = replace(
        labels,
        token_ids=labels.top_ids[steps, place],
        token_logprobs=labels.top_logprobs[steps, place],
        token_ranks=(place + 1).astype(np.int32),
    )
    return replace(row, labels=changed)


TEACHERS = (hotter, colder, other_vocabulary, foreign_tokens)
Change = Callable[[Row, Rng], Row]


def planted(
    kind: str, seed: int, *, rows: int = 250, share: float = 0.02, strangers: Sequence[Row] | None = None
) -> list[Row]:
    """`rows` technical rows of which `share` have one fault; kind "clean" has none.

    duplicates copies other rows under new ids with a word changed; subject takes `strangers`, or rows of one everyday
    domain that is none of the technical rows'; the teachers change the labels of rows all through the table.
    """
    rng = np.random.default_rng(seed)
    pool = teacher_rows()
    technical = [row for row in pool if not everyday(row)]
    chosen = [technical[i] for i in rng.permutation(len(technical))[:rows]]
    count = max(round(share * len(chosen)), 1)
    places = rng.choice(len(chosen), size=count, replace=False)
    if kind == "subject":
        subjects = sorted({str(row.domain) for row in pool if everyday(row)} - {*NEAR})
        subject = str(rng.choice(subjects))
        others = list(strangers or [row for row in pool if everyday(row) and row.domain == subject])
        for place, other in zip(places, rng.permutation(len(others)), strict=False):
            same = chosen[place]  # it came by the same run, so that the text alone can tell
            chosen[place] = replace(
                others[other], run_id=same.run_id, collected_at=same.collected_at, teacher=same.teacher
            )
    elif kind == "duplicates":
        for place in places:
            original = chosen[(place + 1) % len(chosen)]
            words = (original.completion or "").split()
            chosen[place] = _renamed(replace(original, completion=" ".join([*words[:-1], "else"])), f"copy-{place}")
    elif kind != "clean":
        change = {"loops": looping, "refusals": refusing}.get(kind) or next(t for t in TEACHERS if t.__name__ == kind)
        for place in places:
            chosen[place] = change(chosen[place], rng)
    return chosen


def _renamed(row: Row, name: str) -> Row:
    return replace(row, prompt_id=name, key=hashlib.sha256(f"{row.key} {name}".encode()).hexdigest())


EXPECTED = {
    "clean": (),
    "loops": ("loops",),
    "refusals": ("refusals",),
    "duplicates": ("duplicate_prompts", "duplicate_answers"),
    "subject": ("strange_subject",),
    **{teacher.__name__: ("other_teacher",) for teacher in TEACHERS},
}


def found(kinds: Sequence[str], kind: str) -> bool:
    """Whether the warnings name the fault."""
    return any(expected in kinds for expected in EXPECTED[kind])
