"""Files that a query cannot need stay closed, and every answer is the one that it gets with all files open."""

import hashlib
from dataclasses import replace
from datetime import timedelta

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from storage import query
from storage.errors import QueryFailed
from storage.query import sql
from storage.table import Table
from tests.storage.make_rows import GEMMA, QWEN, START, make_rows

DAYS = 3
ALL = 2 * DAYS


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two teachers, three days, a file each: gemma (revision gguf-q4_k_m) and Qwen (none), 20 rows a file."""
    table = Table.create(tmp_path_factory.mktemp("pruning") / "labels")
    for day in range(DAYS):
        for name, teacher in (("gemma", GEMMA), ("qwen", QWEN)):
            rows = [
                replace(row, key=hashlib.sha256(f"{name} {day} {n}".encode()).hexdigest(), collected_at=at)
                for n, row in enumerate(make_rows(0, 20, targets=1, k=1, teacher=teacher))
                for at in [START + timedelta(days=day, minutes=n)]
            ]
            table.append(rows, writer=name, sequence=day)
    return Table.open(table.path)


@pytest.fixture
def opened(monkeypatch):
    """Numbers of label files that queries were given, the newest last."""
    counts = []
    wanted = query.files_wanted

    def counting(*arguments):
        found = wanted(*arguments)
        counts.append(len(found))
        return found

    monkeypatch.setattr(query, "files_wanted", counting)
    return counts


def unpruned(table, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "files_wanted", lambda connection, nodes, views, files, groups: files)
        return sql(table, text).to_pylist()


COUNT = "SELECT count(*) AS n, min(key) AS low, max(key) AS high FROM "
SOME = {
    "soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B'": 3,
    "soft_labels WHERE TEACHER.Model = 'Qwen/Qwen3-8B' AND k = 1": 3,
    "soft_labels s WHERE s.teacher.model = 'Qwen/Qwen3-8B' AND s.collected_at < '2026-11-02 00:00:00+00'": 1,
    "soft_labels WHERE soft_labels.teacher.model LIKE 'google/%'": 3,
    "soft_labels WHERE NOT lower(teacher.model) LIKE 'google/%'": 3,
    "soft_labels WHERE teacher.model = 'nobody'": 0,
    "soft_labels WHERE teacher.revision IS NULL": 3,
    "soft_labels WHERE teacher.revision <> 'x'": 3,
    "soft_labels WHERE teacher.revision IS DISTINCT FROM 'gguf-q4_k_m'": 3,
    "soft_labels WHERE teacher.model IN ('a', 'Qwen/Qwen3-8B')": 3,
    "soft_labels WHERE teacher.model = 'a' OR teacher.access_path = 'self_host'": 6,
    "soft_labels WHERE audit_group < '0'": 0,
    "soft_labels WHERE collected_at >= TIMESTAMPTZ '2026-11-02 00:10:00+00'": 4,
    "soft_labels WHERE TIMESTAMPTZ '2026-11-02 00:10:00+00' <= collected_at": 4,
    "soft_labels WHERE TIMESTAMPTZ '2026-11-02 00:10:00+00' > collected_at": 4,
    "soft_labels WHERE collected_at = TIMESTAMPTZ '2026-11-02 00:10:00+00'": 2,
    "soft_labels WHERE collected_at > TIMESTAMPTZ '2026-11-01 00:19:00+00'": 4,
    "soft_labels WHERE collected_at >= TIMESTAMPTZ '2026-11-01 00:19:00+00'": 6,
    "soft_labels WHERE collected_at < TIMESTAMPTZ '2026-11-02 00:00:00+00'": 2,
    "soft_labels WHERE collected_at <= TIMESTAMPTZ '2026-11-02 00:00:00+00'": 4,
    "soft_labels WHERE collected_at BETWEEN '2026-11-01 12:00:00+00' AND '2026-11-02 12:00:00+00'": 2,
    "tokens WHERE model = 'Qwen/Qwen3-8B'": 3,
    "candidates c WHERE c.model = 'Qwen/Qwen3-8B' AND rank = 1": 3,
    "(SELECT * FROM soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B' LIMIT 5) ORDER BY 1": 3,
}
EVERY = [
    "soft_labels",
    "soft_labels WHERE k = 1",
    "soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B' OR k = 1",
    "soft_labels WHERE teacher.provider = 'vllm'",
    "soft_labels WHERE teacher.model = 'nobody' OR random() < 2",
    "soft_labels WHERE collected_at <> TIMESTAMPTZ '2026-11-02 00:10:00+00'",
    "soft_labels WHERE NOT collected_at < TIMESTAMPTZ '2026-11-02 00:10:00+00'",
    "soft_labels WHERE collected_at - INTERVAL 1 DAY > TIMESTAMPTZ '2026-11-01 00:10:00+00'",
    "soft_labels WHERE collected_at::DATE = '2026-11-02' OR teacher.model = 'Qwen/Qwen3-8B'",
    "soft_labels WHERE collected_at < (SELECT TIMESTAMPTZ '2026-11-02 00:10:00+00')",
    "soft_labels WHERE collected_at > make_timestamptz(0) + INTERVAL 1 DAY",
    "soft_labels WHERE teacher.model = (SELECT max(x) FROM (VALUES ('Qwen/Qwen3-8B')) v(x))",
    "soft_labels teacher WHERE teacher.teacher.model = 'Qwen/Qwen3-8B'",
    "soft_labels t(key, x, audit_group) WHERE audit_group = 'generate'",
    "soft_labels a JOIN soft_labels b USING (prompt_id) WHERE a.teacher.model = 'Qwen/Qwen3-8B'",
    "soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B' AND key IN (SELECT key FROM tokens)",
    "(SELECT * FROM soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B' UNION ALL SELECT * FROM soft_labels) s",
    "(SELECT 1 AS one) LEFT JOIN soft_labels ON teacher.model = 'nobody'",
]
WHOLE = [
    "WITH soft_labels AS (SELECT * FROM soft_labels) {} soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B'",
    "WITH a AS (SELECT *, 'Qwen/Qwen3-8B' AS model FROM soft_labels) {} a WHERE model = 'Qwen/Qwen3-8B'",
]


@pytest.mark.parametrize("text", SOME)
def test_only_files_that_may_hold_rows_are_opened(table, opened, text):
    asked = COUNT.replace("key", "a.key") + text if " JOIN " in text else COUNT + text
    assert sql(table, asked).to_pylist() == unpruned(table, asked)
    assert opened == [SOME[text]]


@pytest.mark.parametrize("text", [*EVERY, *WHOLE])
def test_where_a_condition_is_no_plain_one_all_files_are_opened(table, opened, text):
    count = COUNT.replace("key", "a.key") if " a JOIN " in text else COUNT
    asked = text.format(count) if text in WHOLE else count + text
    assert sql(table, asked).to_pylist() == unpruned(table, asked)
    assert opened == [ALL]


def test_a_sample_is_taken_from_all_rows(table, opened):
    for text in (
        "SELECT key FROM soft_labels TABLESAMPLE reservoir(5 ROWS) WHERE teacher.model = 'Qwen/Qwen3-8B'",
        "SELECT key FROM soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B' USING SAMPLE reservoir(5 ROWS)",
    ):
        assert sql(table, text).num_rows <= 5
    assert opened == [ALL, ALL]


def test_a_condition_that_fails_fails_as_it_would(table):
    with pytest.raises(QueryFailed, match="no-date"):
        sql(table, "SELECT count(*) FROM soft_labels WHERE collected_at < 'no-date'")


def test_a_group_that_groups_does_not_know_is_read(table, opened, monkeypatch):
    monkeypatch.setattr(type(table.groups), "read", lambda ledger: ledger.log.schema.empty_table())
    asked = "SELECT count(*) AS n FROM soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B'"
    assert sql(table, asked).to_pylist() == [{"n": 60}] and opened == [ALL]


def test_rows_stay_readable_where_groups_is_damaged(tmp_path, opened):
    table = Table.create(tmp_path / "t")
    table.append(make_rows(0, 2), writer="w", sequence=0)
    table.append(make_rows(2, 3, teacher=QWEN), writer="w", sequence=1)
    for path in table.groups.paths():
        path.write_bytes(path.read_bytes()[:100])
    asked = "SELECT count(*) AS n FROM soft_labels WHERE teacher.model = 'Qwen/Qwen3-8B'"
    assert sql(table, asked).to_pylist() == [{"n": 3}] and opened == [2]


BOUNDS = st.tuples(
    st.sampled_from(["<", "<=", "=", ">=", ">", "<>"]), st.integers(-30, 3 * 1440), st.booleans(), st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(st.lists(BOUNDS, min_size=1, max_size=3))
def test_any_bounds_give_the_same_rows(table, bounds):
    parts = []
    for operator, minutes, mirrored, half in bounds:
        at = f"TIMESTAMPTZ '{START + timedelta(minutes=minutes, seconds=30 * half):%Y-%m-%d %H:%M:%S}+00'"
        parts.append(f"{at} {operator} collected_at" if mirrored else f"collected_at {operator} {at}")
    asked = f"SELECT count(*) AS n, min(key) AS low FROM soft_labels WHERE {' AND '.join(parts)}"
    assert sql(table, asked).to_pylist() == unpruned(table, asked)
