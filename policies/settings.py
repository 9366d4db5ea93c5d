"""The one reader of TOML settings: every error at once, each with its path in the file, never the value that was given.

Trade-off: pydantic words most messages; only unknown keys, missing keys and choices among shapes are worded here.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from policies.errors import PolicyError


class ConfigError(PolicyError):
    """A settings file cannot be read or does not say what it must."""

    exit_code = 2


class Settings(BaseModel):
    """Base of every settings model: unknown keys refused, values never echoed in errors, immutable once read."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True, allow_inf_nan=False)


def _beside_its_file(path: Path, info: ValidationInfo) -> Path:
    """A relative path means the folder of the settings file, so a run works from any working directory."""
    folder = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None or path.is_absolute() else Path(folder) / path


LocalPath = Annotated[Path, AfterValidator(_beside_its_file)]

M = TypeVar("M", bound=BaseModel)


def read_toml(path: Path, model: type[M]) -> M:
    """Read the TOML file at `path` into `model`.

    Raises ConfigError (exit 2) when the file cannot be opened or parsed, or when anything in it does not fit the
    model; the message then has one line per error, `FILE: [table] key: what is wrong`.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `potstill init` writes one to start from") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, a TOML file is needed") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    try:
        return model.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        lines = explain(error, model, data)
        raise ConfigError("\n".join(f"{path.name}: {line}" for line in lines)) from None


def explain(error: ValidationError, model: type[BaseModel], data: object) -> list[str]:
    """One line per error of `error`, `[table] key: message`, in the order of the file's model, without input values."""
    lines: dict[str, None] = {}
    found = [(_in_file(item["loc"], item["type"], data), item) for item in error.errors(include_input=False)]
    for (keys, of_a_shape), item in found:
        # `use = Use | Path`: the errors of the shape that was not meant say nothing once the other one has its own
        if of_a_shape and any(other[: len(keys)] == keys and len(other) > len(keys) for (other, _), _ in found):
            continue
        lines[f"{_spell(keys)}{_message(item, keys, model)}"] = None
    return list(lines)


def _in_file(loc: Sequence[int | str], kind: str, data: object) -> tuple[tuple[int | str, ...], bool]:
    """`loc` without pydantic's names for the branches of a union, and whether it ended in such a name."""
    keys: list[int | str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        inside = isinstance(data, dict) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]  # type: ignore[index]
            keys.append(part)
        elif last and kind in ("missing", "extra_forbidden"):
            keys.append(part)
        elif last:
            return tuple(keys), True
    return tuple(keys), False


def _spell(keys: Sequence[int | str]) -> str:
    """('ask', 'top_k') → '[ask] top_k: '; list positions count from 1, as a reader of the file does."""
    words: list[str] = []
    for key in keys:
        if isinstance(key, int) and words:
            words[-1] += f" #{key + 1}"
        else:
            words.append(str(key))
    if not words:
        return ""
    table = ".".join(words[:-1])
    return f"[{table}] {words[-1]}: " if table else f"{words[-1]}: "


def _message(item: Any, keys: Sequence[int | str], model: type[BaseModel]) -> str:
    kind, message = str(item["type"]), str(item["msg"])
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        names = sorted({name for owner in _models_at(model, keys[:-1]) for name in owner.model_fields})
        near = difflib.get_close_matches(str(keys[-1]), names, n=1, cutoff=0.6)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(names)}"
    return re.sub(r"^(Value|Assertion) error, ", "", message)


def _models_at(model: type[BaseModel], keys: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that a table at `keys` may be read into."""
    owners: list[type[BaseModel]] = [model]
    for key in keys:
        if isinstance(key, int):
            continue
        fields = [owner.model_fields[key].annotation for owner in owners if key in owner.model_fields]
        owners = [inner for annotation in fields for inner in _models_in(annotation)]
    return owners


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Every model named anywhere in a type annotation, such as `tuple[Endpoint, ...] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _models_in(inner)
