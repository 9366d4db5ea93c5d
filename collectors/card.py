"""The endpoint card: what a probe found out about an endpoint, as a record that rows name by its digest.

It holds only what stays the same between two probes of the same server, so that its digest stays the same too.
"""

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

from collectors.config import AskSettings

if TYPE_CHECKING:
    from rich.table import Table

FULL_VOCABULARY = 65_536
"""The largest vocabulary whose whole distribution is kept: 512 KB a token."""

LogprobSpace = Literal["raw", "scaled", "processed", "unknown"]


class EndpointCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of an endpoint. None means: not found out.

    address: where it answers: by it a row says which endpoint of a pool it came from. None for one that a run starts.
    token_ids: ids come with the answer or are recovered from bytes by the given tokenizer.
    largest_k: most candidates that a request got; k_limit: the smallest number that was refused or cut.
    logprob_space: whether temperature and truncation are inside the numbers, measured.
    adds_bos: what the server did with a text; tokenizer_adds_bos: what the tokenizer's own rule says.
    extra_entry: the realised token comes as an entry besides the top k. sentinels: stand-ins for −inf that were seen.
    empty_lists: tokens with log-probability 0.0 and no candidates (speculative decoding).
    echo, unknown_fields: what became of a field by which a prompt would be scored, and of one that nobody knows.
    """

    kind: str
    address: str | None = None
    served_model: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    template_sha256: str | None = None
    token_ids: bool
    prompt_token_ids: bool
    largest_k: int
    k_limit: int | None = None
    scores_prompts: bool
    logprob_space: LogprobSpace = "unknown"
    best_first: bool | None = None
    extra_entry: bool | None = None
    sentinels: tuple[str, ...] = ()
    empty_lists: bool = False
    same_answer_twice: bool | None = None
    adds_bos: bool | None = None
    tokenizer_adds_bos: bool | None = None
    echo: Literal["works", "ignored", "refused"] | None = None
    unknown_fields: Literal["ignored", "refused"] | None = None

    def to_json(self) -> bytes:
        """Canonical JSON: sorted keys, no white space."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def digest(self) -> str:
        """Hex sha256 of the canonical JSON: what rows carry in `teacher.endpoint_card`."""
        return hashlib.sha256(self.to_json()).hexdigest()


def read_card(data: bytes) -> EndpointCard:
    """A card from its JSON; raises msgspec.ValidationError when it is none."""
    return msgspec.json.decode(data, type=EndpointCard)


def contradictions(card: EndpointCard, ask: AskSettings) -> list[str]:
    """What the run asks for and the endpoint does not do, one sentence each; empty when the run may start."""
    found = []
    if ask.mode != "classify" and ask.top_k > card.largest_k:
        found.append(
            f"The run asks for top_k = {ask.top_k}, but the endpoint gave no more than {card.largest_k} candidates: "
            f"lower ask.top_k, or raise the server's own limit."
        )
    if ask.estimator == "full" and card.vocabulary is not None and card.vocabulary > FULL_VOCABULARY:
        found.append(
            f"ask.estimator = 'full' would keep {card.vocabulary:,} numbers a token, more than {FULL_VOCABULARY:,}: "
            "use estimator = 'top_k', whose tail is exact here, or 'sampled'."
        )
    if ask.mode in ("score", "classify") and not card.scores_prompts:
        found.append(
            f"ask.mode = {ask.mode!r} needs log-probabilities of a given text, which a {card.kind} endpoint does not "
            "give: use vllm, sglang or local, or ask.mode = 'generate'."
        )
    if ask.top_k and not card.token_ids:
        found.append(
            "The endpoint tells neither token ids nor bytes that the teacher's tokenizer maps to one id each: give "
            "teacher.tokenizer, serve the teacher by vllm or llamacpp, or ask for text alone (top_k = 0)."
        )
    if card.empty_lists:
        found.append(
            "Some tokens came with log-probability 0 and no candidates, as speculative decoding leaves them: "
            "start the server without a draft model."
        )
    if ask.mode == "generate" and card.context_length is not None and ask.max_tokens >= card.context_length:
        found.append(
            f"max_tokens = {ask.max_tokens} leaves no room for a prompt in the server's context of "
            f"{card.context_length} tokens: lower ask.max_tokens."
        )
    if card.unknown_fields == "refused" and (ask.min_p > 0 or ask.sampling_top_k > 0):
        found.append(
            "The endpoint refuses fields that OpenAI's interface does not have, so ask.min_p and ask.sampling_top_k "
            "cannot be sent: leave them out."
        )
    if ask.bos == "add" and card.adds_bos:
        found.append("ask.bos = 'add' would double BOS, which the server adds by itself: use ask.bos = 'server'.")
    return found


def warnings(card: EndpointCard) -> list[str]:
    """What is worth knowing and does not stop a run, one sentence each."""
    found = []
    if card.adds_bos is not None and card.tokenizer_adds_bos is not None and card.adds_bos != card.tokenizer_adds_bos:
        does, says = ("adds", "does not want") if card.adds_bos else ("does not add", "wants")
        found.append(f"The server {does} BOS to a text, the tokenizer's own rule {says} it: see ask.bos.")
    if card.same_answer_twice is False:
        found.append("The same request with the same seed was answered differently: labels vary a little by batch.")
    if card.logprob_space in ("scaled", "processed"):
        found.append(f"The log-probabilities are {card.logprob_space}: the sampling parameters are inside them.")
    if card.logprob_space == "unknown":
        found.append("Whether temperature is inside the log-probabilities could not be measured.")
    return found


_WORDS = {True: "yes", False: "no", None: "not found out"}


def card_table(card: EndpointCard) -> "Table":
    """The card as a person reads it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Endpoint card {card.digest[:12]}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in msgspec.structs.asdict(card).items():
        shown = _WORDS[value] if value is None or isinstance(value, bool) else value
        if isinstance(shown, tuple):
            shown = ", ".join(shown) or "none seen"
        plain = "".join(letter for letter in str(shown) if letter.isprintable())  # a server's words may hold escapes
        table.add_row(name.replace("_", " "), Text(plain))
    return table
