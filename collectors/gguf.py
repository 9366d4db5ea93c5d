"""The metadata of a GGUF file, read without its weights.

Written here because the `gguf` library wraps every value in arrays of its own and takes 9 s for 262,144 tokens;
this takes a third of a second. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2, 3).
"""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeAlias

from collectors.errors import CollectError

Value: TypeAlias = "int | float | bool | str | list[Value]"

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_DEEPEST = 4  # the format nests arrays without a bound; real files never do


class GgufError(CollectError):
    """A file given as a GGUF model cannot be read as one."""

    exit_code: ClassVar[int] = 2


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, layout: str) -> int | float | bool:
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return value  # type: ignore[no-any-return]

    def count(self) -> int:
        """A length of at least one byte an element: one that exceeds the file is damage, not a reason to allocate."""
        count = int(self.scalar("<Q"))
        if count > len(self.data) - self.at:
            raise ValueError("a length reaches past the end of the file")
        return count

    def string(self) -> str:
        length = self.count()
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        if depth == _DEEPEST:
            raise ValueError("arrays are nested too deep")
        inner, count = int(self.scalar("<I")), self.count()
        if inner not in _SCALARS:
            return [self.value(inner, depth + 1) for _ in range(count)]
        layout = f"<{count}{_SCALARS[inner][1]}"
        values = list(struct.unpack_from(layout, self.data, self.at))
        self.at += struct.calcsize(layout)
        return values


def read_metadata(path: Path) -> Mapping[str, Value]:
    """All key-value pairs of a GGUF file, in the file's order. Raises GgufError when it is not one, or is cut short."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise GgufError(f"{path} is no GGUF model: it does not begin with the letters GGUF.")
            reader = _Reader(data)
            reader.at = 4
            version = reader.scalar("<I")
            if version not in (2, 3):
                raise GgufError(f"{path} is GGUF version {version}; versions 2 and 3 (little-endian) can be read.")
            reader.scalar("<Q")  # the number of tensors
            return {reader.string(): reader.value(int(reader.scalar("<I"))) for _ in range(reader.count())}
    except OSError as error:
        raise GgufError(f"The GGUF model {path} cannot be read: {error.strerror}.") from error
    except (struct.error, KeyError, ValueError) as error:
        raise GgufError(f"{path} is a damaged GGUF file ({error}): copy or download it again.") from error
