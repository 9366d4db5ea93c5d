"""A table version as a data set for others: the Hugging Face layout with a card, or JSON lines.

An export leaves the table, so it is judged first, by default as a publication; the decision and what it obliges to
travel with the data.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from policies.decision import Decision
from policies.discharge import texts
from policies.use import Use
from policies.waivers import Waiver
from storage.audit import audit, demand
from storage.data_files import make_folder
from storage.dataset_card import card
from storage.display import plain
from storage.errors import NotWritable, mapped
from storage.schema import SOFT_LABELS
from storage.table import Table

Layout = Literal["hf", "jsonl"]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    out: Path
    rows: int
    version: int
    decision: str
    owed: tuple[str, ...] = ()
    """What the action triggers, with its document; what holds at all times is in LICENSE-OBLIGATIONS.md alone."""


def export(
    path: Path | str,
    out: Path,
    *,
    to: Layout = "hf",
    use: Use | None = None,
    version: int | None = None,
    waivers: Sequence[Waiver] = (),
) -> Exported:
    """Write a table version into the new folder `out`; `use` is by default publishing the data set.

    `hf`: data/train-*.parquet with all columns, README.md (a data set card with licence metadata) and the tokenizers.
    `jsonl`: data.jsonl (−inf as null). Both: decision.json, LICENSE-OBLIGATIONS.md and NOTICE. Raises Refused or
    NeedsReview by the policies, NotWritable where `out` has something in it.
    """
    newest = Table.open(path, version)
    table = Table.open(path, newest.version)
    decision = audit(path, use or Use(action="publish_dataset"), version=table.version, waivers=waivers)
    demand(decision, "Exporting this table")
    with mapped(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise NotWritable(f"{out} is there already: name a folder that is new or empty.")
        make_folder(out)
        for name, text in {"decision.json": decision.to_json(), **texts(decision)}.items():
            (out / name).write_text(text, "utf-8")
        if to == "hf":
            _hugging_face(table, decision, out)
        else:
            _json_lines(table, out / "data.jsonl")
    owed = tuple(
        f"{duty.text} ({duty.document})" for duty in decision.obligations if duty.due and duty.trigger != "always"
    )
    return Exported(out, sum(file.rows for file in table.files()), table.version, decision.digest, owed)


def _hugging_face(table: Table, decision: Decision, out: Path) -> None:
    files = table.files()
    make_folder(out / "data")
    for number, file in enumerate(files):
        shutil.copyfile(file.path, out / "data" / f"train-{number:05}-of-{len(files):05}.parquet")
    for digest in table.listed("tokenizers"):
        make_folder(out / "tokenizers")
        (out / "tokenizers" / f"{digest}.json").write_bytes(table.tokenizer(digest))
    (out / "README.md").write_text(card(table, decision), "utf-8")


def _json_lines(table: Table, out: Path) -> None:
    with out.open("w", encoding="utf-8") as sink:
        for line in _lines(table):
            sink.write(json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n")


def _lines(table: Table) -> Iterator[dict[str, Any]]:
    for file in table.files():
        with pq.ParquetFile(file.path) as source:
            for batch in source.iter_batches(batch_size=64, columns=SOFT_LABELS.names):
                yield from batch.to_pylist()
