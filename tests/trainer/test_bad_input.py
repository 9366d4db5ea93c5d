"""Tables and settings that cannot be trained on as they are: what is lost is named, and the rest is one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from storage.errors import StorageError, TableDamaged
from storage.query import sql
from storage.rows import TailSum
from storage.table import Table
from tests.trainer.synthetic import MarkovTeacher, training_folder
from trainer.config import read_config
from trainer.errors import LossRefused, RowGroupLost, StreamRefused
from trainer.fit import train
from trainer.prepare import make_stream, make_student

torch.set_num_threads(1)
TEACHER = MarkovTeacher()


def folder(path: Path, *, files: int = 4, rows: int = 30, **changes: object) -> Table:
    """A table of several files, with train.toml beside it."""
    table = Table.create(path / "table")
    digest = table.save_tokenizer(TEACHER.tokenizer())
    for number in range(files):
        made = TEACHER.rows(rows, seed=number, tokenizer_sha256=digest, **changes)
        table.append(made, writer="test", sequence=number)
    return Table.open(path / "table")


def settings(path: Path, data: str = "", *, steps: int = 20, head: str = "", loss: str = "") -> Path:
    file = training_folder(path, steps=steps)
    text = file.read_text(encoding="utf-8").replace("[training]", f"{data}\n[loss]\n{loss}\n[training]")
    file.write_text(head + text, encoding="utf-8")
    return file


def damage(table: Table) -> str:
    file = table.files()[1]
    data = bytearray(file.path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 256] = b"\xff" * 256
    file.path.write_bytes(data)
    return file.path.name


def test_a_damaged_row_group_is_named_counted_and_stops_past_the_share(tmp_path: Path) -> None:
    name = damage(folder(tmp_path))
    record = train(read_config(settings(tmp_path, "quarantine = 0.3"))).record
    assert record["unreadable"] == {"row_groups": [f"row group 0 of {name}"], "rows": pytest.approx(30, abs=10)}
    for share in ("", "quarantine = 0.2"):
        with pytest.raises(RowGroupLost, match=rf"row group 0 of {name} cannot be read.*of 120 rows are lost"):
            train(read_config(settings(tmp_path, share)))


def test_a_condition_cannot_be_asked_of_rows_that_are_lost(tmp_path: Path) -> None:
    """Whether it holds for them is not known, so neither `quarantine` nor a lucky column lets the training go on."""
    name = damage(folder(tmp_path))
    chosen = "quarantine = 0.3\nwhere = \"prompt_id < 'p20000'\""
    with pytest.raises(TableDamaged, match=rf"{name} was altered or cut.*run `potstill verify`"):
        train(read_config(settings(tmp_path, chosen)))


def test_unknown_tokens_and_candidates_give_no_nan(tmp_path: Path) -> None:
    table = Table.create(tmp_path / "table")
    digest = table.save_tokenizer(TEACHER.tokenizer())
    rows = []
    for row in TEACHER.rows(40, tokenizer_sha256=digest):
        labels = row.labels
        assert labels is not None
        ids, top_ids, top = labels.token_ids.copy(), labels.top_ids.copy(), labels.top_logprobs.copy()
        ids[5], top_ids[3], top[3], tail = -1, -1, -np.inf, labels.log_tail.copy()
        tail[3] = 0.0
        rows.append(
            replace(row, labels=replace(labels, token_ids=ids, top_ids=top_ids, top_logprobs=top, log_tail=tail))
        )
    table.append(rows, writer="w", sequence=0)
    record = train(read_config(settings(tmp_path))).record
    assert all(np.isfinite(log[name]) for log in record["log"] for name in ("loss", "divergence") if name in log)
    assert record["log"][0]["divergence"] > 0


def test_a_step_without_loss_tokens_has_loss_0_and_changes_nothing(tmp_path: Path) -> None:
    table = folder(tmp_path, files=1, prompt_source="spoiled")
    config = read_config(settings(tmp_path, "[data.source_weights]\nspoiled = 0.0"))
    record = train(config).record
    assert {log["loss"] for log in record["log"] if "loss" in log} == {0.0}
    before = make_student(config, table).model.state_dict()
    for name, tensor in load_file(config.out / "model.safetensors").items():
        assert torch.equal(before[name], tensor)


def test_rows_are_chosen_by_sql(tmp_path: Path) -> None:
    table = folder(tmp_path, files=2)
    config = read_config(settings(tmp_path, "where = \"prompt_id < 'p10000'\""))
    stream = make_stream(config, table, make_student(config, table), split="train", batch_size=4)
    assert stream.index.left_out == {"left out by the caller": 30}
    with pytest.raises(StorageError, match="no_such_column"):
        train(read_config(settings(tmp_path, 'where = "no_such_column = 1"')))


def test_keys_that_are_left_out_are_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    table = folder(tmp_path, files=2)
    keys = sql(table.path, "SELECT key FROM soft_labels ORDER BY key")["key"].to_pylist()
    (tmp_path / "wrong.txt").write_text("\n".join(keys[:20]), encoding="utf-8")
    config = read_config(settings(tmp_path, 'leave_out = "wrong.txt"'))
    assert train(config).record["left_out"] == {"left out by the caller": 20}
    student = make_student(config, table)
    rows = {
        split: len(make_stream(config, table, student, split=split, batch_size=4).index)
        for split in ("train", "holdout")
    }
    assert sum(rows.values()) == 40


def test_a_temperature_goes_to_the_stream_or_is_refused(tmp_path: Path) -> None:
    table = folder(tmp_path, files=1)
    warm = "temperature = 2.0"
    with pytest.raises(StreamRefused, match="no tail sums at the loss's temperature"):
        train(read_config(settings(tmp_path, loss=warm)))
    with pytest.raises(LossRefused, match=r"tail 'zero' at temperature 2\.0"):
        train(read_config(settings(tmp_path, loss=f'{warm}\ntail = "zero"')))
    assert train(read_config(settings(tmp_path, loss=f'{warm}\ntail = "renormalised"', steps=2))).out.is_dir()
    rows = []
    for row in TEACHER.rows(30, seed=8, tokenizer_sha256=table.save_tokenizer(TEACHER.tokenizer())):
        assert row.labels is not None
        sums = TailSum(temperature=2.0, log_sums=np.log(np.full(len(row.labels), 1.5, dtype=np.float32)))
        rows.append(replace(row, tail_sums=(sums,)))
    table.append(rows, writer="warm", sequence=0)
    record = train(read_config(settings(tmp_path, loss=warm, steps=4))).record
    assert record["left_out"] == {"no tail sums at the loss's temperature": 30}


def test_a_version_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    table = folder(tmp_path, files=1)
    with pytest.raises(StorageError, match="99") as caught:
        train(read_config(settings(tmp_path, head="version = 99\n")))
    assert "\n" not in str(caught.value)
    table.files()[0].path.unlink()
    with pytest.raises(RowGroupLost, match="cannot be read"):
        train(read_config(settings(tmp_path)))
