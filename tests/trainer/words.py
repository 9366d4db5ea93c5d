"""A Markov teacher whose words are single tokens, and a student's tokenizer that spells a third of them in two.

So two tokens in three stand one for one, the others in chunks, and every distribution is known.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from storage.codec import Labels
from storage.rows import Row
from storage.table import Table
from tests.trainer.gemma import END
from tests.trainer.synthetic import EOS, FIRST_WORD, MarkovTeacher, make_row
from trainer.tokenizer import TokenizerDefinition, read_tokenizer

WORDS = [first + second for first in "bdfgkl" for second in "aeiouyhr"]
SPACE = "Ġ"


def spelling(whole: list[str]) -> TokenizerDefinition:
    """A byte-level tokenizer that has some words, each with the space before it, as one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(SPACE, first) for first in sorted({word[0] for word in whole})]
    merges += [(SPACE + word[0], word[1]) for word in whole]
    names = [END, *alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return read_tokenizer(tokenizer.to_str().encode()).with_eos(END)


def own_words() -> TokenizerDefinition:
    """The student's: every third word is spelled."""
    return spelling([word for number, word in enumerate(WORDS) if number % 3])


class SpellingTeacher(MarkovTeacher):
    """MarkovTeacher with the words' own tokens; its chain and its numbers are the same."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(len(WORDS), seed=seed)
        ids = spelling(WORDS).vocabulary()
        self.ids = np.array([-1, ids[END], *(ids[SPACE + word] for word in WORDS)])

    def tokenizer(self) -> bytes:
        return json.dumps(spelling(WORDS).content).encode()

    def rows(self, count: int, **options: Any) -> list[Row]:
        """As MarkovTeacher's, in the tokens and the texts of this one."""
        changes = {name: options.pop(name) for name in ("tokenizer_sha256",) if name in options}
        return [self._spelled(number, row, changes) for number, row in enumerate(super().rows(count, **options))]

    def _spelled(self, number: int, row: Row, changes: dict[str, Any]) -> Row:
        labels, prompt = row.labels, np.asarray(row.prompt_token_ids)
        assert labels is not None
        spelled = Labels(
            token_ids=self.ids[labels.token_ids].astype(np.int32),
            token_logprobs=labels.token_logprobs,
            token_ranks=labels.token_ranks,
            top_ids=self.ids[labels.top_ids].astype(np.int32),
            top_logprobs=labels.top_logprobs,
            log_tail=labels.log_tail,
        )
        fields = {"prompt": self._text(prompt), "completion": self._text(labels.token_ids), "finish_reason": "length"}
        fields |= {"prompt_token_ids": self.ids[prompt].astype(np.int32)}
        return make_row(number, spelled, **(fields | changes))

    def _text(self, ids: Any) -> str:
        return "".join(" " + WORDS[i - FIRST_WORD] for i in ids if i != EOS)


def words_table(folder: Path, count: int, seed: int = 0) -> Table:
    return SpellingTeacher(seed).table(folder, count, seed=seed)
