"""What a kind of endpoint must be able to do, and the register of kinds: one module each, imported on use.

A provider only builds requests and reads responses; sending, waiting and storing are the run's. So that every row knows
the exact tokens that the teacher saw, a provider may ask for preparatory exchanges (rendering, tokenizing) first.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from collectors.config import AskSettings, EndpointSettings, TeacherSettings
from collectors.errors import CollectError
from collectors.http import Request
from collectors.plan import Item
from collectors.tokenizer import Tokenizer
from storage.codec import Labels
from storage.rows import TailSum, Usage

if TYPE_CHECKING:
    from collectors.card import EndpointCard
    from collectors.providers.answer import Answer
    from collectors.providers.in_process_sender import InProcessSender

__all__ = [
    "KINDS",
    "Engine",
    "Provider",
    "ProviderUnavailable",
    "Reading",
    "Setup",
    "local_sender",
    "local_tokenizer",
    "provider",
    "unfit_prompts",
]

# Questions that a function gets in one call, at most: a call of NumPy costs more than a row.
_CALLED_TOGETHER = 256


class ProviderUnavailable(CollectError):
    """The endpoint's kind cannot be served by this installation; the message says what to install or to use instead."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one response holds, in the words of the table's columns.

    text: the answer without its reasoning. labels: None where token ids are not known; then `token_bytes` has the bytes
    of each token. prompt_token_ids: what the teacher saw before the first target, BOS included; for masked models all
    that it saw, and `target_positions` says where in it the targets are. tail_sums, top_weights and an estimator other
    than top_k: only where full logits were seen.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str | None = None
    labels: Labels | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_bytes: tuple[bytes, ...] | None = None
    target_positions: NDArray[np.int32] | None = None
    tail_sums: tuple[TailSum, ...] | None = None
    top_weights: NDArray[np.float32] | None = None
    estimator: str = "top_k"
    logprob_space: str = "unknown"
    usage: Usage = field(default_factory=Usage)
    response_id: str | None = None
    model: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a server says of itself. `template` is the text of its chat template; None = not said."""

    name: str | None = None
    version: str | None = None
    served_model: str | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a provider is made for: the run's settings, and what is known of the endpoint so far."""

    teacher: TeacherSettings
    endpoint: EndpointSettings
    ask: AskSettings
    card: "EndpointCard | None" = None
    tokenizer: Tokenizer | None = None

    @property
    def model(self) -> str:
        """The server's own name for the model."""
        return self.endpoint.served_model or self.teacher.model

    @property
    def logprob_space(self) -> str:
        """What the probe measured of the numbers."""
        return "unknown" if self.card is None else self.card.logprob_space

    @property
    def vocabulary(self) -> int | None:
        """One more than the largest id; None = not known."""
        if self.tokenizer is not None:
            return self.tokenizer.vocabulary
        return None if self.card is None else self.card.vocabulary

    @property
    def bos_token_id(self) -> int | None:
        """The tokenizer's BOS."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id


class Provider(Protocol):
    """One kind of endpoint. The order of calls for an item:

    while (first := provider.prepare(item)) is not None: item = provider.prepared(item, body of the answer to `first`)
    reading = provider.read(item, body of the answer to provider.request(item))

    `read` must get the item that `prepared` returned last: it carries the prompt's token ids.
    """

    kind: str
    about: tuple[Request, ...]

    def prepare(self, item: Item) -> Request | None:
        """What must be asked before the item itself (how the server tokenizes its prompt); None when all is known."""

    def prepared(self, item: Item, body: bytes) -> Item:
        """The item completed by the body of a 200 answer to `prepare`. Raises Rejected."""

    def request(self, item: Item) -> Request:
        """The request for the item's labels, with every sampling parameter: servers' defaults are not neutral."""

    def read(self, item: Item, body: bytes) -> Reading:
        """The labels in the body of a 200 answer to `request`. Raises Rejected with a reason code."""

    def answer(self, item: Item, body: bytes) -> "Answer":
        """What `read` reads, before the numbers are checked and put in order: probes look at that. Raises Rejected."""

    def engine(self, bodies: Sequence[bytes | None]) -> Engine:
        """The server's words about itself, from the answers to `about`; None where one was not a 200."""


@dataclass(frozen=True, slots=True)
class _Kind:
    module: str
    name: str
    modes: Mapping[str, frozenset[str]]  # what each mode can be asked with
    with_bos: frozenset[str] = frozenset()  # before which of these a BOS of ours can go; given tokens stay as given
    extra: str | None = None  # of this distribution, when the module needs more than the base installation


_PROMPTS = frozenset({"prompt"})
_TOKENS = _PROMPTS | {"prompt_token_ids"}
_ALL = _TOKENS | {"messages"}
_SCORED = "with a completion"
_SCORED_TEXT = frozenset({f"prompt {_SCORED}"})
_SCORED_CHAT = _SCORED_TEXT | {f"messages {_SCORED}"}
KINDS: dict[str, _Kind] = {
    "embedded": _Kind("collectors.providers.llamacpp", "LlamaCpp", {"generate": _ALL}, _ALL, "embedded"),
    "llamacpp": _Kind("collectors.providers.llamacpp", "LlamaCpp", {"generate": _ALL}, _ALL),
    "vllm": _Kind(
        "collectors.providers.vllm",
        "VLLM",
        {"generate": _ALL, "score": _ALL | _SCORED_CHAT, "classify": _PROMPTS},
        _TOKENS,
    ),
    "sglang": _Kind(
        "collectors.providers.sglang", "SGLang", {"generate": _TOKENS, "score": _TOKENS | _SCORED_TEXT}, _TOKENS
    ),
    "tgi": _Kind("collectors.providers.tgi", "TGI", {"generate": _PROMPTS}),
    "local": _Kind(
        "collectors.providers.in_process",
        "InProcess",
        {
            "generate": _ALL,
            "score": _ALL | _SCORED_CHAT | {f"prompt_token_ids {_SCORED}"},
            "classify": _ALL,
            "mask": _TOKENS,
        },
        _ALL | _SCORED_CHAT | {f"prompt_token_ids {_SCORED}"},
        "train",
    ),
    "openai": _Kind("collectors.providers.openai", "OpenAICompatible", {"generate": _ALL}),
}


def unfit_prompts(endpoint: EndpointSettings, ask: AskSettings, shapes: Mapping[str, str]) -> str | None:
    """Why these prompts cannot be asked at this kind of endpoint, as one sentence; None when they can.

    shapes: what the prompts give (`messages`, `prompt with a completion`, …) and where such a one stands first.
    Raises ProviderUnavailable for a mode that the kind does not have.
    """
    entry = _entry(endpoint.kind, ask.mode)
    takes = _PROMPTS if endpoint.callable is not None else entry.modes[ask.mode]
    for shape, source in shapes.items():
        asked = shape if ask.mode == "score" else shape.partition(f" {_SCORED}")[0]
        if asked not in takes:
            chat = " (kind = 'openai' speaks to the same server by its chat interface)" if asked == "messages" else ""
            able = sorted(name for name, other in KINDS.items() if asked in other.modes.get(ask.mode, ()))
            return (
                f"endpoint.kind = {endpoint.kind!r} takes {' or '.join(sorted(takes))} in ask.mode = {ask.mode!r}, but "
                f"{source} gives {asked}: change the prompts, or use {', '.join(able) or 'another mode'}{chat}."
            )
        if ask.bos == "add" and (asked not in entry.with_bos or ask.mode in ("classify", "mask")):
            return (
                f"ask.bos = 'add' cannot put a BOS before {asked} ({source}) at endpoint.kind = {endpoint.kind!r}: "
                "use ask.bos = 'server'."
            )
    return None


def provider(
    kind: str,
    *,
    teacher: TeacherSettings,
    endpoint: EndpointSettings,
    ask: AskSettings,
    card: "EndpointCard | None" = None,
    tokenizer: Tokenizer | None = None,
) -> Provider:
    """The provider for `kind`. Raises ProviderUnavailable for a kind or a mode that this version does not have."""
    entry = _entry(kind, ask.mode)
    found = getattr(_imported(kind, entry.module), entry.name)
    made: Provider = found(Setup(teacher=teacher, endpoint=endpoint, ask=ask, card=card, tokenizer=tokenizer))
    return made


def _entry(kind: str, mode: str) -> _Kind:
    if kind not in KINDS:
        raise ProviderUnavailable(
            f"endpoint.kind = {kind!r} is not in this version: use one of {', '.join(sorted(KINDS))}."
        )
    if mode not in KINDS[kind].modes:
        able = sorted(name for name, other in KINDS.items() if mode in other.modes)
        raise ProviderUnavailable(
            f"endpoint.kind = {kind!r} cannot do ask.mode = {mode!r}: use one of {', '.join(able)}."
        )
    return KINDS[kind]


def local_sender(teacher: TeacherSettings, endpoint: EndpointSettings, ask: AskSettings) -> "InProcessSender":
    """The sender for kind `local`: imports the function endpoint.callable, or loads the model endpoint.model_path, else
    teacher.model.

    Raises ProviderUnavailable when torch or transformers are missing, EndpointStopped when the model or the function
    cannot be loaded.
    """
    from collectors.providers.callable_teacher import load_callable
    from collectors.providers.in_process_sender import InProcessSender

    if endpoint.callable is not None:
        return InProcessSender(load_callable(endpoint.callable), batch=_CALLED_TOGETHER)
    model = _imported("local", "collectors.providers.local")
    return InProcessSender(model.open_teacher(endpoint.model_path or teacher.model, ask.mode, endpoint.dtype))


def local_tokenizer(teacher: TeacherSettings, endpoint: EndpointSettings) -> Path | None:
    """The tokenizer.json of the model that kind `local` loads; None where there is none, as for a function."""
    if endpoint.callable is not None:
        return None
    if endpoint.model_path is not None:
        beside = endpoint.model_path / "tokenizer.json"
        return beside if beside.is_file() else None
    found: Path | None = _imported("local", "collectors.providers.local").tokenizer_file(teacher.model)
    return found


def _imported(kind: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = KINDS[kind].extra
        wanted = f"pip install 'potstill[{extra}]'" if extra else "pip install potstill"
        raise ProviderUnavailable(
            f"endpoint.kind = {kind!r} needs the package {error.name!r}, which is not installed: {wanted}"
        ) from error
