"""The header of a Parquet page: how long it is, how long its page is, and the page's checksum.

Headers are Thrift's compact protocol; two fields are kept, all else is stepped over. A query meets thousands of them:
those without bounds, as most are, are recognized whole by a pattern, the others by one loop over their bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache

_BINARY, _STRUCT = 8, 12
_NUMBERS = {4, 5, 6, _BINARY}
"""Kinds that start with a number: whole numbers of 16, 32 and 64 bits, and bytes after their length."""
_FIXED = {1: 0, 2: 0, 3: 1, 7: 8}
"""Bytes of the kinds of a fixed length: true and false (in the field's first byte), a byte, a double."""
_SIZE, _CHECKSUM = 3, 4
"""Fields of PageHeader (parquet.thrift): compressed_page_size, crc."""
_NUMBER = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
_WITHOUT_BOUNDS = re.compile(
    rb"\x15[\x00\x04]\x15%(n)b\x15(%(n)b)\x15(%(n)b)[\x1c\x3c](?:\x15%(n)b)+\x12?(?:\x1c\0)?\0\0" % {b"n": _NUMBER}
)
"""Type (a data or dictionary page), uncompressed size, size, checksum, a struct of numbers with empty statistics."""


def page_header(data: bytes, at: int = 0) -> tuple[int, int, int | None] | None:  # noqa: C901 - thousands a query: one loop
    """The header that starts at `at`: where its page starts and ends, and the page's CRC-32 where the writer gave one.

    None where there is no header, or `data` ends within it.
    """
    if known := _WITHOUT_BOUNDS.match(data, at):
        length, crc = _meaning(*known.groups())
        return known.end(), known.end() + length, crc
    size, checksum = -1, None
    name = depth = 0
    try:
        while (first := data[at]) or depth:
            at += 1
            if not first:  # the end of a struct within
                depth -= 1
                continue
            if not depth:
                name += first >> 4
            kind = first & 15
            if kind in _NUMBERS and first > 15:
                value = data[at]
                at += 1
                if value > 127:
                    value, at = _varint(data, at, value)
                if kind == _BINARY:
                    at += value
                elif not depth and name == _SIZE:
                    size = value >> 1
                elif not depth and name == _CHECKSUM:
                    checksum = ((value >> 1) ^ -(value & 1)) & 0xFFFFFFFF
            elif kind == _STRUCT:
                depth += 1
            else:
                at += _FIXED[kind]
    except (IndexError, KeyError):
        return None
    return (at + 1, at + 1 + size, checksum) if size >= 0 else None


def _varint(data: bytes, at: int, value: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, whose first byte was read; and where it ends."""
    value &= 127
    shift = 7
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


@lru_cache(4096)
def _meaning(size: bytes, checksum: bytes) -> tuple[int, int]:
    """Size and checksum as the two fields hold them; kept, because columns of one value give the same page again."""
    crc = _number(checksum)
    return _number(size) >> 1, ((crc >> 1) ^ -(crc & 1)) & 0xFFFFFFFF


def _number(raw: bytes) -> int:
    value = 0
    for byte in reversed(raw):
        value = value << 7 | byte & 127
    return value
