"""A transformers model in this process. Causal models generate, score and classify; masked models answer at masked
positions. Questions that wait together go through the model together, as many as the memory for their logits allows.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

# Threads that spin while they wait take the cores from those that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.hub import cached_file

from collectors.errors import EndpointStopped, Rejected
from collectors.providers.distribution import Distribution, concatenated, distribution
from collectors.providers.in_process import About, Question, Told, told_labels

MASKED_SHARE = 0.15
"""Share of positions that are masked, as BERT and DistilBERT were trained (Devlin et al. 2019)."""

# Logits of one pass, and of one sequence alone: 256 MB and 4 GB in float32.
_LOGITS_TOGETHER = 2**26
_LOGITS_OF_ONE = 2**30

P = ParamSpec("P")
T = TypeVar("T")
Batch = Callable[[Sequence[Question]], list[Told | Rejected]]


class _Teacher:
    """A model with its tokenizer, from a local folder or a name that transformers knows; safetensors only."""

    def __init__(self, made_by: Any, folder: Path | str, device: str, dtype: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = made_by.from_pretrained(folder, use_safetensors=True, dtype=dtype)
        self.model: Any = model.to(torch.device(device)).eval()
        self.context_length: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.vocabulary = int(self.model.config.get_text_config().vocab_size)
        # Of 262k candidates at 20 positions, one position's are wanted to classify: the head is nearly all of the work.
        self._keeps = "logits_to_keep" in signature(self.model.forward).parameters

    def last(self, positions: int) -> dict[str, int]:
        """Forward's argument for logits of the last positions alone, where the model has it."""
        return {"logits_to_keep": positions} if self._keeps else {}

    @torch.inference_mode()
    def logits(self, rows: Sequence[Sequence[int]], first: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
        """Logits [S − first, V] of each sequence [S] from its first wanted position on, in order.

        Row j of a causal model is the distribution of token first + j + 1.
        """
        device, at, first = self.model.device, 0, [0] * len(rows) if first is None else first
        while at < len(rows):
            end, longest, earliest = at, 0, first[at]
            while end < len(rows):
                longest, earliest = max(longest, len(rows[end])), min(earliest, first[end])
                if end > at and (end + 1 - at) * (longest - earliest) * self.vocabulary > _LOGITS_TOGETHER:
                    break
                end += 1
            together = [torch.tensor(list(row), device=device) for row in rows[at:end]]
            ids = torch.nn.utils.rnn.pad_sequence(together, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in together], batch_first=True)
            kept = self.last(ids.shape[1] - min(first[at:end]))
            found = self.model(input_ids=ids, attention_mask=mask, **kept).logits
            left_out = ids.shape[1] - found.shape[1]
            for row, begin, of_row in zip(together, first[at:end], found, strict=True):
                yield of_row[begin - left_out : len(row) - left_out]
            at = end

    def check(self, ids: Sequence[int], more: int = 0) -> None:
        """Raise Rejected where a sequence, with `more` to come, has ids unknown to the model, or is too long for it."""
        if (strange := next((one for one in ids if not 0 <= one < self.vocabulary), None)) is not None:
            raise Rejected("id_out_of_vocabulary", f"token id {strange}; the model has {self.vocabulary} tokens")
        tokens = len(ids) + more
        if self.context_length is not None and tokens > self.context_length:
            raise Rejected("context_overflow", f"{tokens} tokens, more than the model's {self.context_length}")
        if tokens * self.vocabulary > _LOGITS_OF_ONE:
            raise Rejected("context_overflow", f"{tokens} tokens of {self.vocabulary} logits take too much memory")

    def about(self) -> About:
        """Engine, version, vocabulary, context and chat template."""
        template, dtype = getattr(self.tokenizer, "chat_template", None), str(self.model.dtype).removeprefix("torch.")
        return About(
            engine="transformers",
            version=f"{version('transformers')} torch {torch.__version__} {dtype}",
            model=str(self.model.config.model_type),
            vocabulary=self.vocabulary,
            context_length=self.context_length,
            template=template if isinstance(template, str) else None,
        )


class CausalTeacher(_Teacher):
    """A causal language model."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", dtype: str = "auto") -> None:
        super().__init__(AutoModelForCausalLM, folder, device, dtype)

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question; those of one mode are computed together."""
        ways: dict[str, Batch] = {"score": self._score, "classify": self._classify, "generate": self._generate}
        return _by_mode(ways, questions)

    def prompt_ids(self, question: Question) -> list[int]:
        """The prompt's tokens, by the tokenizer's own rule or the model's chat template; BOS before them if asked."""
        if question.prompt_token_ids is not None:
            return list(question.prompt_token_ids)
        if question.messages is not None:
            if self.tokenizer.chat_template is None:
                raise Rejected("no_template", "the model has no chat template: use prompts, not messages")
            chat = list(question.messages)
            text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(question.prompt)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if question.add_bos and bos is not None and ids[:1] != [bos] else list(ids)

    def _score(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        texts = [_or_rejected(self._targets, question) for question in questions]
        asked = [text for text in texts if not isinstance(text, Rejected)]
        rows = self.logits([ids for ids, _ in asked], [target - 1 for _, target in asked])
        return [
            text if isinstance(text, Rejected) else _or_rejected(_scored, question, *text, next(rows))
            for question, text in zip(questions, texts, strict=True)
        ]

    def _targets(self, question: Question) -> tuple[list[int], int]:
        """All tokens of a text, and where its targets begin."""
        prompt = self.prompt_ids(question)
        more = [] if question.completion is None else self._continuation(question.completion)
        ids, first = prompt + more, len(prompt) if more else 1
        if len(ids) <= first or first == 0:
            raise Rejected("no_targets", "the text has no token that the teacher had a context for")
        self.check(ids)
        return ids, first

    def _continuation(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _classify(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """Each label's log-probability is that of its whole token sequence behind the prompt, over all labels."""
        begun = [_or_rejected(self._labelled, question) for question in questions]
        asked = [(one.prompt, begin) for one in begun if not isinstance(one, Rejected) for begin in one.begins]
        rows = self.logits([[*prompt, *begin] for prompt, begin in asked], [len(prompt) - 1 for prompt, _ in asked])
        return [
            one if isinstance(one, Rejected) else told_labels(question, one.prompt, one.logprobs(rows))
            for question, one in zip(questions, begun, strict=True)
        ]

    def _labelled(self, question: Question) -> "_Labelled":
        prompt, labels = self.prompt_ids(question), [self._continuation(label) for label in question.labels]
        if not prompt or not all(labels):
            raise Rejected("no_targets", "the prompt or a label has no tokens")
        for label in labels:
            self.check(prompt + label)
        return _Labelled(prompt, labels)

    def _generate(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """All questions together, padded on the left; each draws from its own seed and stops at its own end."""
        begun = [_or_rejected(self._begun, question) for question in questions]
        states = [state for state in begun if not isinstance(state, Rejected)]
        if states:
            self._grow(states)
        return [state if isinstance(state, Rejected) else self._grown(state) for state in begun]

    def _begun(self, question: Question) -> "_Growing":
        prompt = self.prompt_ids(question)
        if not prompt:
            raise Rejected("empty_prompt", "a prompt without tokens cannot be continued")
        self.check(prompt, question.max_tokens)
        return _Growing(question, prompt)

    @torch.inference_mode()
    def _grow(self, states: Sequence["_Growing"]) -> None:
        width, device = max(len(state.prompt) for state in states), self.model.device
        fed = torch.tensor([[0] * (width - len(one.prompt)) + one.prompt for one in states], device=device)
        mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in states], device=device)
        cache, ends = None, _ends(self.model, self.tokenizer)
        while any(state.growing for state in states):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
            past = {"past_key_values": cache, "use_cache": True, **self.last(1)}
            out = self.model(input_ids=fed, attention_mask=mask, position_ids=positions, **past)
            cache = out.past_key_values
            tokens = [state.grow(out.logits[i, -1:], ends) for i, state in enumerate(states)]
            fed = torch.tensor([[token] for token in tokens], device=device)
            mask = torch.cat([mask, torch.ones_like(fed)], dim=-1)

    def _grown(self, state: "_Growing") -> Told | Rejected:
        if state.rejected is not None:
            return state.rejected
        text = str(self.tokenizer.decode(state.tokens, skip_special_tokens=True))
        told = _told(text, state.prompt, state.tokens, concatenated(state.parts), state.question)
        told.finish_reason = state.finish_reason
        return told


class _Labelled:
    """A prompt and the tokens of its labels; those that differ in their last token alone are one sequence to read."""

    def __init__(self, prompt: list[int], labels: list[list[int]]) -> None:
        self.prompt = prompt
        self.begins = list(dict.fromkeys(tuple(label[:-1]) for label in labels))
        self._labels = labels

    def logprobs(self, rows: Iterator[torch.Tensor]) -> NDArray[np.float64]:
        """Log-probabilities [L] over all labels; the next `rows` are logits [1 + b, V] behind prompt and each begin."""
        read = {begin: next(rows).double().log_softmax(-1).cpu() for begin in self.begins}
        sums = [read[tuple(label[:-1])][torch.arange(len(label)), torch.tensor(label)].sum() for label in self._labels]
        return np.asarray(torch.stack(sums).log_softmax(-1))


class _Growing:
    """A sequence while it is generated, with its own random numbers."""

    def __init__(self, question: Question, prompt: list[int]) -> None:
        self.question = question
        self.prompt = prompt
        self.tokens: list[int] = []
        self.parts: list[Distribution] = []
        self.finish_reason: str | None = None
        self.rejected: Rejected | None = None
        self._random = torch.Generator().manual_seed(question.seed)

    @property
    def growing(self) -> bool:
        return self.finish_reason is None and self.rejected is None

    def grow(self, logits_1V: torch.Tensor, ends: frozenset[int]) -> int:
        """The next token; 0 when the sequence has ended."""
        if not self.growing:
            return 0
        try:
            token = draw(logits_1V[0], self.question, self._random)
            target = torch.tensor([token], device=logits_1V.device)
            self.parts.append(distribution(logits_1V, target, self.question, self._random))
        except Rejected as error:
            self.rejected = error
            return 0
        self.tokens.append(token)
        if token in ends:
            self.finish_reason = "stop"
        elif len(self.tokens) == self.question.max_tokens:
            self.finish_reason = "length"
        return token


def draw(logits_V: torch.Tensor, question: Question, random: torch.Generator) -> int:
    """One token of the distribution shaped by temperature, top_k, top_p and min_p, in this order; greedy at 0.

    Raises Rejected when a logit is NaN.
    """
    logits = logits_V.double().cpu()
    if torch.isnan(logits).any():
        raise Rejected("nan", "the model gave a logit that is no number")
    if question.temperature == 0:
        return int(logits.argmax())
    logits = logits / question.temperature
    if 0 < question.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(question.top_k).values[-1], -torch.inf)
    probabilities, order = logits.softmax(-1).sort(descending=True)
    keep = probabilities >= question.min_p * probabilities[0]
    if question.top_p < 1:
        keep &= probabilities.cumsum(-1) - probabilities < question.top_p
    return int(order[torch.multinomial(probabilities * keep, 1, generator=random)])


class MaskedTeacher(_Teacher):
    """A masked language model: a share of a text's tokens is masked, and the distributions there are the labels."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", dtype: str = "auto") -> None:
        super().__init__(AutoModelForMaskedLM, folder, device, dtype)

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question."""
        return _by_mode({"mask": self._mask}, questions)

    def _mask(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        texts = [_or_rejected(self._masked, question) for question in questions]
        rows = self.logits([text[0] for text in texts if not isinstance(text, Rejected)])
        return [
            text if isinstance(text, Rejected) else _or_rejected(_unmasked, question, *text, next(rows))
            for question, text in zip(questions, texts, strict=True)
        ]

    def _masked(self, question: Question) -> tuple[list[int], list[int], list[int]]:
        """The text's tokens with some masked, where, and what stood there.

        Positions are chosen by the question's seed among the tokens that are not special, at least one.
        """
        if question.messages is not None or question.completion is not None:
            raise Rejected("text_only", "a text is masked, not messages or a completion: use prompts")
        ids = list(question.prompt_token_ids or self.tokenizer(question.prompt)["input_ids"])
        self.check(ids)
        special = set(self.tokenizer.all_special_ids)
        free = [i for i, token in enumerate(ids) if token not in special]
        if not free:
            raise Rejected("no_targets", "the text has no token that could be masked")
        count = max(1, round(MASKED_SHARE * len(free)))
        chosen = sorted(np.random.default_rng(question.seed).choice(free, size=count, replace=False).tolist())
        realised = [ids[i] for i in chosen]
        for i in chosen:
            ids[i] = self.tokenizer.mask_token_id
        return ids, chosen, realised


def open_teacher(folder: Path | str, mode: str, dtype: str = "auto") -> CausalTeacher | MaskedTeacher:
    """A folder as the teacher for a mode, on the GPU if there is one. Raises EndpointStopped for what is no model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = MaskedTeacher if mode == "mask" else CausalTeacher
    try:
        teacher = kind(folder, device=device, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EndpointStopped(
            f"The teacher {folder} cannot be read as a transformers model with safetensors: {first}"
        ) from error
    if mode == "mask" and teacher.tokenizer.mask_token_id not in range(teacher.vocabulary):
        raise EndpointStopped(f"The tokenizer of {folder} has no mask token: ask.mode = 'mask' needs a masked model.")
    return teacher


def tokenizer_file(name: str) -> Path | None:
    """The tokenizer.json of a folder or of a model that transformers knows by name; None where it has none."""
    try:
        found = cached_file(name, "tokenizer.json")
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _by_mode(ways: Mapping[str, Batch], questions: Sequence[Question]) -> list[Told | Rejected]:
    told: dict[int, Told | Rejected] = {}
    for mode in dict.fromkeys(question.mode for question in questions):
        places = [i for i, question in enumerate(questions) if question.mode == mode]
        if mode in ways:
            told |= zip(places, ways[mode]([questions[i] for i in places]), strict=True)
        else:
            told |= {i: Rejected("mode_not_possible", f"this model cannot do ask.mode = {mode!r}") for i in places}
    return [told[i] for i in range(len(questions))]


def _or_rejected(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Rejected:
    try:
        return step(*args, **kwargs)
    except Rejected as error:
        return error


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model may have several, as chat models do."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)


def _scored(question: Question, ids: list[int], first: int, logits: torch.Tensor) -> Told:
    targets = torch.tensor(ids[first:], device=logits.device)
    found = distribution(logits[:-1], targets, question)
    text = question.prompt or "" if question.completion is None else question.completion
    return _told(text, ids[:first], ids[first:], found, question)


def _unmasked(question: Question, ids: list[int], chosen: list[int], realised: list[int], logits: torch.Tensor) -> Told:
    found = distribution(logits[chosen], torch.tensor(realised, device=logits.device), question)
    told = _told(question.prompt or "", ids, realised, found, question)
    told.target_positions = np.asarray(chosen, dtype="<i4").tobytes()
    return told


def _told(text: str, prompt: list[int], targets: list[int], found: Distribution, question: Question) -> Told:
    """As an answer: where the vocabulary is smaller than k, columns of −1 and −inf are added."""
    short = max(0, question.k - found.top_ids.shape[1]) if question.estimator == "top_k" else 0
    ids = torch.nn.functional.pad(found.top_ids, (0, short), value=-1)
    logprobs = torch.nn.functional.pad(found.top_logprobs, (0, short), value=-torch.inf)
    return Told(
        text=text,
        prompt_token_ids=prompt,
        k=ids.shape[1],
        token_ids=np.asarray(targets, dtype="<i4").tobytes(),
        token_logprobs=_bytes(found.token_logprobs, "<f4"),
        token_ranks=_bytes(found.token_ranks, "<i4"),
        top_ids=_bytes(ids, "<i4"),
        top_logprobs=_bytes(logprobs, "<f4"),
        log_tail=_bytes(found.log_tail, "<f4"),
        tail_sums=[(t, _bytes(sums, "<f4")) for t, sums in zip(question.tail_sums, found.tail_sums, strict=True)],
        top_weights=None if found.top_weights is None else _bytes(found.top_weights, "<f4"),
    )


def _bytes(values: torch.Tensor, dtype: str) -> bytes:
    return values.cpu().numpy().astype(dtype).tobytes()
