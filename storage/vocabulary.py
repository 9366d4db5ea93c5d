"""How many ids a stored tokenizer file knows, without a tokenizer library: enough to see an id that cannot be."""

import json

from storage.errors import InvalidRecord


def vocabulary_size(data: bytes) -> int:
    """One more than the largest id of a Hugging Face tokenizer.json, or of a GGUF's tokenizer kept as JSON.

    Raises InvalidRecord when it is neither.
    """
    try:
        tokenizer = json.loads(data)
        if str(tokenizer.get("format", "")).startswith("gguf-tokenizer"):
            return len(tokenizer["tokens"])
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token["id"] for token in tokenizer.get("added_tokens", [])]
        return 1 + max([*ids, *added], default=-1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRecord(f"A stored tokenizer is no tokenizer.json ({error!r}): save it again.") from error
