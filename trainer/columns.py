"""List and text columns of a row group as flat arrays: no Python object per number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.codec import list_values


@dataclass(frozen=True, slots=True)
class ListColumn:
    """One list column of a row group: the values of row i are values[starts[i] : ends[i]]."""

    starts: list[int]
    ends: list[int]
    values: NDArray[Any]

    def row(self, i: int) -> NDArray[Any]:
        """A view."""
        return self.values[self.starts[i] : self.ends[i]]


class Pages:
    """Memory of past windows, for the next ones: to be given fresh pages by the system costs as much as decoding."""

    def __init__(self) -> None:
        self.free: list[NDArray[np.uint8]] = []

    def copy(self, values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """The page that holds a copy of `values`, and the copy. Give the page back to `free`."""
        fitting = [n for n, page in enumerate(self.free) if page.nbytes >= values.nbytes]
        if fitting:
            page = self.free.pop(fitting[0])
        else:
            del self.free[:1]  # one that is too small, so that pages do not add up
            page = np.empty(values.nbytes + values.nbytes // 8, dtype=np.uint8)
        copy = page[: values.nbytes].view(values.dtype)
        np.copyto(copy, values)
        return page, copy


def list_column(column: pa.ChunkedArray) -> ListColumn:
    """A list column; a text column, or the joined contents of a column of messages, as UTF-8 (nothing where null)."""
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        messages = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        contents = pa.ListArray.from_arrays(messages.offsets, pc.struct_field(messages.values, "content"))
        column = pa.chunked_array([pc.binary_join(contents, "\n")])
    if pa.types.is_string(column.type):
        text = pa.concat_arrays([chunk.fill_null("") for chunk in column.chunks] or [pa.array([], pa.string())])
        offsets: NDArray[Any] = np.frombuffer(
            text.buffers()[1], dtype=np.int32, count=len(text) + 1, offset=4 * text.offset
        )
        data = text.buffers()[2]
        letters = np.frombuffer(data if data is not None else b"", dtype=np.uint8)
        return ListColumn(offsets[:-1].tolist(), offsets[1:].tolist(), letters)
    # a row group is one chunk, which combine_chunks (in list_values) would copy
    offsets, values = list_values(column.chunk(0) if column.num_chunks == 1 else column)
    return ListColumn(offsets[:-1].tolist(), offsets[1:].tolist(), values)


def tail_sums_at(column: pa.ChunkedArray, temperature: float) -> ListColumn:
    """Of the column `tail_sums`, those stored for one temperature."""
    rows = column.combine_chunks()
    sums_of_row, (offsets, values) = rows.offsets.to_numpy(), list_values(rows.values.field("log_sums"))
    at_temperature = np.flatnonzero(rows.values.field("temperature").to_numpy() == np.float32(temperature))
    position = np.searchsorted(at_temperature, sums_of_row[:-1])
    chosen = np.append(at_temperature, 0)[position]  # a row without one is not in the index, or has no candidates
    return ListColumn(offsets[chosen].tolist(), offsets[chosen + 1].tolist(), values)
