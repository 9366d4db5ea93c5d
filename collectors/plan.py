"""Prompts → requests with keys, minus what the table and the journal have. A key holds everything that decides the
answer and nothing that does not: no address, no secret, no limit; so the same question is asked once, whoever asks."""

from dataclasses import dataclass

from storage.rows import Message as Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request for one row: a prompt (text, messages or token ids; exactly one is given) and one of its samples.

    `completion` is the text to score against the prompt (mode score). `seed` follows from the key, so that a repeated
    request repeats its sampling. `source` is where the prompt came from (file:line).
    """

    key: str
    prompt_id: str
    sample_index: int
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    completion: str | None = None
    seed: int = 0
    max_tokens: int = 0
    source: str = ""
    licence: str | None = None
    reference: str | None = None
    domain: str | None = None
