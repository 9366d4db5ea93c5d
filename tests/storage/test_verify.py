import json
import random
import subprocess

import numpy as np
import pyarrow as pa
import pytest

from storage.data_files import write_data_file
from storage.delta_log import NewFile, statistics
from storage.errors import InvalidRecord
from storage.log_sums import SUMS
from storage.rows import rows_to_arrow
from storage.table import Table
from storage.verify import repair, verify
from storage.vocabulary import vocabulary_size
from tests.storage.make_rows import QWEN, make_row, make_rows
from tests.storage.test_table import reject


@pytest.fixture
def table(tmp_path):
    table = Table.create(tmp_path / "labels")
    for n in range(3):
        table.append([*make_rows(10 * n, 5), *make_rows(1000 + 10 * n, 2, teacher=QWEN)], writer="w", sequence=n)
    table.append_rejects([reject(1)], writer="w", sequence=0)
    table.save_tokenizer(json.dumps({"model": {"vocab": {"a": 0, "b": 999}}}).encode())
    table.save_training({"student": "s"})
    return table


def smuggle(table, columns):
    """Commit a file of these columns past all checks of append."""
    group = columns.column("audit_group")[0].as_py()
    tokens = sum(len(x or ()) for x in columns.column("token_ids").to_pylist())
    written = write_data_file(table.log.root / f"audit_group={group}", columns, f"{tokens}t-")
    table.log.commit(table.log.open(), add=[NewFile(written, group, statistics(columns))])


def test_a_whole_table_has_no_problems(table):
    found = verify(table.path)
    assert (found.version, found.files, found.rows, found.problems, found.leftovers) == (3, 6, 21, (), ())
    assert verify(table.path, version=1).files == 2


def test_one_flipped_byte_in_each_file_is_named(table):
    dice = random.Random(3)
    files = [f.path for f in table.files()]
    files += [f.path for ledger in (table.groups, table.rejects) for f in ledger.log.files(ledger.log.open())]
    files += [*(table.path / "tokenizers").iterdir(), *(table.path / "trainings").iterdir()]
    for path in files:
        data = bytearray(path.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
    named = {problem.path.split(".json")[0] for problem in verify(table.path).problems}
    expected = {f.relative_to(table.path).as_posix().split(".json")[0] for f in files if "groups" not in f.parts}
    assert expected <= named
    assert any("groups/" in name for name in named)


def test_a_missing_and_a_truncated_file_are_named(table):
    first, second, *_ = table.files()
    first.path.unlink()
    second.path.write_bytes(second.path.read_bytes()[:100])
    problems = {problem.path: problem.what for problem in verify(table.path).problems}
    assert problems[first.path.relative_to(table.path).as_posix()] == "the file is missing"
    assert "another checksum" in problems[second.path.relative_to(table.path).as_posix()]


def replaced(columns, name, values):
    at = columns.schema.get_field_index(name)
    return columns.set_column(at, columns.schema.field(name), pa.array(values, columns.schema.field(name).type))


def spoil(name, change):
    columns = rows_to_arrow(make_rows(5000, 3))
    values = columns.column(name).to_pylist()
    return replaced(columns, name, [change(values[0]), *values[1:]])


SPOILT = {
    "length of token_logprobs": lambda: spoil("token_logprobs", lambda v: v[:-1]),
    "length of top_ids": lambda: spoil("k", lambda v: v + 1),
    "ordered best first": lambda: spoil("top_logprobs", lambda v: [v[1], v[0], *v[2:]]),
    "sum to": lambda: spoil("log_tail", lambda v: [float("-inf")] * len(v)),
    "holds NaN": lambda: spoil("top_logprobs", lambda v: [float("nan"), *v[1:]]),
    "exactly where top_ids is": lambda: spoil("top_ids", lambda v: [-1, *v[1:]]),
    "no sha256": lambda: spoil("key", lambda v: v[:-1] + "X"),
    "model of a teacher": lambda: spoil("teacher", lambda v: v | {"model": "other"}),
    "prompt_licence": lambda: spoil("prompt_licence", lambda v: "MIT"),
    "terms of a row": lambda: spoil("terms", lambda v: ["other@2020-01-01"]),
    "another audit group than its partition": lambda: replaced(
        rows_to_arrow(make_rows(5000, 2)),
        "audit_group",
        [rows_to_arrow(make_rows(0, 1))["audit_group"][0].as_py(), "x"],
    ),
    "is not in groups/": lambda: rows_to_arrow([make_row(5000, prompt_licence="MIT")]),
    "a key occurs twice": lambda: rows_to_arrow(make_rows(0, 1)),
    "beyond the vocabulary of 1000": lambda: rows_to_arrow([with_id(1000)]),
}


def with_id(largest):
    import hashlib
    from dataclasses import replace

    from tests.storage.make_rows import make_labels

    tokenizer = hashlib.sha256(json.dumps({"model": {"vocab": {"a": 0, "b": 999}}}).encode()).hexdigest()
    labels = make_labels(2, 2)
    top_ids = np.array([[1, 2], [3, largest]], dtype=np.int32)
    return make_row(5000, labels=replace(labels, top_ids=top_ids), tokenizer_sha256=tokenizer)


@pytest.mark.parametrize("what", SPOILT)
def test_a_row_that_breaks_a_rule_is_named(table, what):
    columns = SPOILT[what]()
    smuggle(table, columns.replace_schema_metadata(rows_to_arrow([]).schema.metadata))
    [problem] = verify(table.path).problems
    assert what in problem.what


def test_the_last_id_of_a_vocabulary_is_no_problem(table):
    table.append([with_id(999)], writer="w", sequence=9)
    assert verify(table.path).problems == ()


def test_what_a_killed_writer_leaves_is_removed(table):
    columns = rows_to_arrow(make_rows(300, 2))
    orphan = write_data_file(table.files()[0].path.parent, columns, "16t-").path
    partial = table.files()[0].path.parent / ".abc.partial"
    partial.write_bytes(b"x")
    named = sorted(p.relative_to(table.path).as_posix() for p in (orphan, partial))
    assert list(verify(table.path).leftovers) == named
    assert verify(table.path).problems == ()
    assert repair(table.path) == named
    assert not orphan.exists() and not partial.exists()
    assert verify(table.path).leftovers == () and verify(table.path).rows == 21


def test_sizes_of_vocabularies():
    hugging_face = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 7, "content": "<eos>"}]}
    unigram = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}
    gguf = {"format": "gguf-tokenizer-1", "tokens": ["a", "b", "c"]}
    assert [vocabulary_size(json.dumps(t).encode()) for t in (hugging_face, unigram, gguf)] == [8, 2, 3]
    for bad in (b"x", b"{}", b"[]", b'{"model": {"vocab": 3}}'):
        with pytest.raises(InvalidRecord):
            vocabulary_size(bad)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (4, '{"add": {"path"', "is no log entry"),
        (4, "", "is no log entry"),
        (9, '{"commitInfo": {}}', "entry 9 of the log, but entry 4 is missing"),
        (2, None, "is missing, though"),
    ],
)
def test_a_log_entry_that_cannot_be_is_named(table, name, content, what):
    entry = table.log.root / "_delta_log" / f"{name:020}.json"
    entry.unlink() if content is None else entry.write_text(content)
    found = verify(table.path).problems
    assert any(what in problem.what and problem.path.endswith(entry.name) for problem in found), found


def test_the_sums_of_a_log_are_what_sha256sum_reads(table):
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=table.log.root, capture_output=True, text=True, check=True)
    assert done.stdout.count("OK") == 4


def test_a_commit_makes_up_for_sums_that_a_kill_left_out(table):
    path = table.log.root / SUMS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert verify(table.path).problems == ()
    table.append(make_rows(700, 1), writer="w", sequence=7)
    assert [line.split("/")[-1][:20] for line in path.read_text().splitlines()] == [f"{n:020}" for n in range(5)]
