"""Token ids of a chat, as the teacher's own tokenizer and chat template make them: what Axolotl does when it prepares.

Data sets that keep texts beside their distributions name no ids; the template runs in jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from storage.errors import ForeignDataError, mapped

_ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's `from` calls the roles."""


class ChatTokens:
    """Turns messages into ids by a tokenizer.json and the template that lies beside it."""

    def __init__(self, tokenizer: Path) -> None:
        """Raises ForeignDataError where the tokenizer, the template or a library is missing."""
        try:
            import jinja2.sandbox
            import tokenizers
        except ModuleNotFoundError as error:
            raise ForeignDataError(f"Tokenizing the chats needs {error.name}: pip install {error.name}.") from None
        text, self._special = _template(tokenizer)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = _refused
        try:
            self._render = environment.from_string(text).render
            self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # both libraries raise plain ones
            raise ForeignDataError(f"{tokenizer} or its chat template cannot be used: {error}") from error
        self._broken = jinja2.TemplateError

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the whole chat, its last answer included. Raises ForeignDataError where the template refuses it."""
        chat = [_message(message) for message in messages]
        try:
            text = self._render(messages=chat, add_generation_prompt=False, **self._special)
        except (self._broken, TypeError, KeyError) as error:
            raise ForeignDataError(f"the chat template cannot render it ({error})") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if "from" in message:
        role = str(message["from"])
        return {"role": _ROLES.get(role, role), "content": message.get("value")}
    return dict(message)


def _template(tokenizer: Path) -> tuple[str, dict[str, str]]:
    """The chat template beside a tokenizer.json, and the special tokens that it may name."""
    path, beside = tokenizer.with_name("tokenizer_config.json"), tokenizer.with_name("chat_template.jinja")
    with mapped(tokenizer):
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        template = beside.read_text("utf-8") if beside.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((named["template"] for named in template if named.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ForeignDataError(
            f"There is no chat template beside {tokenizer} (chat_template.jinja or tokenizer_config.json): the set has "
            "chats and no token ids, so both files of the teacher are needed."
        )
    tokens = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    plain = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    return template, {name: token for name, token in plain.items() if isinstance(token, str)}


def _refused(message: str) -> NoReturn:
    raise TypeError(message)
