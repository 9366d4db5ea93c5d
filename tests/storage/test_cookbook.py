"""Every query of docs/queries.md runs, on real labels, and says something."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.use import Use
from storage.audit import audit
from storage.codec import Labels, log_tail
from storage.ledgers import RunRecord
from storage.table import Table
from tests.storage.make_rows import GEMMA, START, make_row, make_rows, sample
from tests.storage.test_table import reject

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text("utf-8")
QUERIES = re.findall(r"^### (\d+\. [^\n]+)\n(?:[^#`]*\n)?```sql\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
LARGER = replace(GEMMA, model="google/gemma-3-1b", revision=None)


def scored(start, *, shift=0.0):
    """64 real positions from `start`; `shift` flattens them, as another teacher would."""
    data = {name: values[start : start + 64] for name, values in sample().items()}
    logprobs = (data["logprobs"].astype(np.float64) * (1 + shift)).astype(np.float32)
    logprobs -= np.maximum(np.log(np.exp(logprobs.astype(np.float64)).sum(axis=1, keepdims=True)), 0).astype(np.float32)
    following = np.append(data["input_ids"][1:], data["ids"][-1, 0]).astype(np.int32)
    hit = data["ids"] == following[:, None]
    ranks = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0).astype(np.int32)
    realised = np.where(ranks > 0, logprobs[np.arange(64), ranks - 1], np.float32(-14.0)).astype(np.float32)
    return Labels(following, realised, ranks, data["ids"].copy(), logprobs, log_tail(logprobs.astype(np.float64)))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    table = Table.create(tmp_path_factory.mktemp("cookbook") / "labels")
    rows = [make_row(n, labels=scored(64 * n), mode="score") for n in range(8)]
    rows += [
        replace(make_row(n, labels=scored(64 * n, shift=0.1), mode="score", teacher=LARGER), key=make_row(100 + n).key)
        for n in range(8)
    ]
    same = {"prompt_id": "again", "completion": "The same.", "labels": rows[0].labels, "finish_reason": "length"}
    rows += [make_row(200 + n, sample_index=n, **same) for n in range(3)]
    rows += [make_row(500 + n, completion="Yes.", reference="yes." if n else "no.") for n in range(4)]
    table.append([*rows, *make_rows(300, 5), make_row(400, labels=None, flags=("no_labels",))], writer="w", sequence=0)
    table.append_rejects([reject(1), reject(2)], writer="w", sequence=0)
    table.save_run(
        RunRecord(
            run_id="w", started_at=START, updated_at=START, outcome="done", config="{}", policy_bundle="b", decision="d"
        )
    )
    audit(table.path, Use.collect_only())
    return table


def test_there_are_twenty_and_more():
    assert len(QUERIES) >= 20 and len(QUERIES) == PAGE.count("```sql")


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_a_query_of_the_cookbook_runs_and_says_something(table, title, query):
    result = table.sql(query)
    assert result.num_rows > 0
    for line in result.slice(0, 1).to_pylist():
        assert any(value is not None for value in line.values())


def answer(table, number):
    [query] = [query for title, query in QUERIES if title.startswith(f"{number}. ")]
    return table.sql(query).to_pylist()


def test_some_of_their_answers_are_known(table):
    logprobs = np.concatenate([scored(64 * n).top_logprobs for n in range(8)])
    mass = {line["model"]: line for line in answer(table, 2)}
    assert mass["google/gemma-3-1b"]["k1"] > 0.5
    assert mass["google/gemma-3-1b"]["k20"] <= mass["google/gemma-3-1b"]["all_stored"]
    apart = answer(table, 9)
    assert apart[0]["apart"] >= apart[-1]["apart"] > 0
    assert answer(table, 10)[0]["positions"] == len(logprobs)
    assert answer(table, 16) == [{"prompt_id": "again", "samples": 3, "different": 1}]
    assert answer(table, 17)[0]["answers"] == 5
    assert [(line["answers"], line["was_right"]) for line in answer(table, 23)] == [(4, 0.75)]
    assert answer(table, 20)[0]["responses"] == 2
