"""What share of a table's labels a student of another tokenizer can use, counted before it trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from storage.codec import list_values
from trainer.across import AcrossRows


@dataclass(frozen=True, slots=True)
class LabelUse:
    """Counts of teacher tokens (targets) over all rows that the student learns from."""

    tokens: int
    one_to_one: int
    """Tokens that are one token of the student too."""
    exact: int
    """Of those, where all candidates are tokens of the student."""
    chunked: int
    """Tokens in longer chunks, whose likelihood is the label."""
    mapped_mass: float
    """Mean probability on the candidates that the student has, over the one-to-one tokens; the rest is tail."""
    student_tokens: int
    changed_rows: int
    """Rows whose text the student's tokenizer does not give back."""

    @property
    def usable(self) -> int:
        """Teacher tokens with a label for the student."""
        return self.one_to_one + self.chunked

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data, for the training record."""
        return asdict(self) | {"usable_share": self.usable / max(self.tokens, 1)}

    def line(self) -> str:
        """How a person reads it."""
        tokens = max(self.tokens, 1)
        share = [f"{count / tokens:.1%}" for count in (self.usable, self.one_to_one, self.exact, self.chunked)]
        changed = f"; {self.changed_rows} rows are left out, whose text it changes" if self.changed_rows else ""
        return (
            f"another tokenizer: {share[0]} of {self.tokens:,} labels are usable: {share[1]} token by token "
            f"({share[2]} with all candidates; {self.mapped_mass:.1%} of the mass is on the student's tokens), "
            f"{share[3]} as chunks of text; {self.student_tokens / tokens:.2f} student tokens a teacher token{changed}"
        )


def label_use(rows: AcrossRows, batches: Iterable[pa.RecordBatch]) -> LabelUse:
    """Reads `rows.columns` and `rows.label_columns` of every row once."""
    count = dict.fromkeys(("tokens", "one_to_one", "exact", "chunked", "student_tokens", "changed_rows"), 0)
    mass = 0.0
    for batch in batches:
        ks = batch.column("k").to_pylist()
        lists = {name: list_values(batch.column(name)) for name in batch.schema.names if name not in ("k", "mode")}
        for i, k in enumerate(ks):
            row = {name: values[offsets[i] : offsets[i + 1]] for name, (offsets, values) in lists.items()}
            count["tokens"] += len(row["token_ids"])
            layout = rows.layout(row["prompt_token_ids"], row["token_ids"])
            if layout is None:
                count["changed_rows"] += 1
                continue
            chunks = layout.chunks
            known = ~np.isnan(row["token_logprobs"]) | (k > 0)
            lengths = chunks.teacher_end - chunks.teacher_start
            single = (lengths == 1) & (chunks.student_end - chunks.student_start == 1)
            readable = chunks.student_start >= layout.first_target
            whole = np.array(
                [known[a:b].all() for a, b in zip(chunks.teacher_start, chunks.teacher_end, strict=True)], dtype=bool
            )
            places = chunks.teacher_start[single & whole & readable]
            count["one_to_one"] += len(places)
            count["chunked"] += int(lengths[~single & whole & readable].sum())
            count["student_tokens"] += len(layout.ids) - layout.first_target
            if k:
                top = row["top_ids"].reshape(-1, k)[places]
                own = (rows.id_map[top] >= 0) & (top >= 0)
                count["exact"] += int((own | (top < 0)).all(axis=1).sum())
                mass += float(
                    np.exp(row["top_logprobs"].reshape(-1, k)[places], where=own, out=np.zeros(own.shape)).sum()
                )
    return LabelUse(mapped_mass=mass / max(count["one_to_one"], 1), **count)
