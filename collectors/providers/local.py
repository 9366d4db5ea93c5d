"""A transformers model in this process: the whole distribution is in view, so the tail is exact.

Causal models generate, score and classify; masked models answer at masked positions. Questions that wait together are
answered in one batch. Logits are turned into labels at once, a few positions at a time: [T, V] in double is never held.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from collectors.errors import EndpointStopped, Rejected
from collectors.providers.in_process import About, Question, Told, told_labels

MASKED_SHARE = 0.15
"""Share of positions that are masked, as BERT and DistilBERT were trained (Devlin et al. 2019)."""

_POSITIONS_TOGETHER = 8  # their logits in double stay in the processor's cache


@dataclass(frozen=True)
class Distribution:
    """Labels of T targets from full logits, as in storage.codec.Labels, and log Σ_tail p^{1/t} by temperature t."""

    token_logprobs: torch.Tensor  # (T) double
    token_ranks: torch.Tensor  # (T)
    top_ids: torch.Tensor  # (T, k)
    top_logprobs: torch.Tensor  # (T, k) double
    log_tail: torch.Tensor  # (T) double
    tail_sums: tuple[torch.Tensor, ...]  # (T) double, one for each temperature


def distribution(
    logits_TV: torch.Tensor, target_ids_T: torch.Tensor, k: int, temperatures: Sequence[float] = ()
) -> Distribution:
    """Labels from logits [T, V] for targets [T], in double. Raises Rejected when a logit is NaN or +inf."""
    pieces = range(0, len(target_ids_T), _POSITIONS_TOGETHER)
    return concatenated(
        [
            _distribution(
                logits_TV[at : at + _POSITIONS_TOGETHER],
                target_ids_T[at : at + _POSITIONS_TOGETHER],
                min(k, logits_TV.shape[1]),
                temperatures,
            )
            for at in pieces
        ]
    )


def _distribution(logits: torch.Tensor, targets: torch.Tensor, k: int, temperatures: Sequence[float]) -> Distribution:
    """One pass of exp over the vocabulary for each temperature; candidates and ranks need none."""
    best, ids = logits.topk(k)
    if not torch.isfinite(best[:, 0]).all():  # topk puts NaN first
        raise Rejected("nan", "the model gave a logit that is no number")
    own, first = logits.gather(-1, targets[:, None]), best[:, :1].double()

    def tail_sum(temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log Σ over all and over the tail of exp((z − z_best) / temperature), [T] each."""
        mass = torch.sub(logits, first).div_(temperature).exp_()
        whole = mass.sum(-1).log()
        return whole, mass.scatter_(-1, ids, 0.0).sum(-1).log()

    whole, tail = tail_sum(1.0)
    log_sum = first + whole[:, None]
    return Distribution(
        token_logprobs=(own - log_sum)[:, 0],
        token_ranks=(logits > own).count_nonzero(-1) + 1,
        top_ids=ids,
        top_logprobs=best - log_sum,
        log_tail=tail - whole,
        tail_sums=tuple(tail_sum(t)[1] - whole / t for t in temperatures),
    )


def concatenated(parts: Sequence[Distribution]) -> Distribution:
    """Distributions of one sequence, joined along its positions; at least one."""
    return Distribution(
        token_logprobs=torch.cat([part.token_logprobs for part in parts]),
        token_ranks=torch.cat([part.token_ranks for part in parts]),
        top_ids=torch.cat([part.top_ids for part in parts]),
        top_logprobs=torch.cat([part.top_logprobs for part in parts]),
        log_tail=torch.cat([part.log_tail for part in parts]),
        tail_sums=tuple(torch.cat(sums) for sums in zip(*(part.tail_sums for part in parts), strict=True)),
    )


class CausalTeacher:
    """A causal language model and its tokenizer, from a local folder or a name that transformers knows.

    tail_temperatures: for which the tail's sum is kept too. Weights are read from safetensors only.
    """

    def __init__(self, folder: Path | str, *, device: str = "cpu", tail_temperatures: Sequence[float] = ()) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto")
        self.model: Any = model.to(torch.device(device)).eval()
        self.temperatures = tuple(tail_temperatures)

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question; those that generate are computed together."""
        ways: dict[str, Callable[[Question], Told]] = {"score": self._score, "classify": self._classify}
        told = {i: _one(ways, question) for i, question in enumerate(questions) if question.mode != "generate"}
        generating = [i for i in range(len(questions)) if i not in told]
        if generating:
            told |= zip(generating, self._generate([questions[i] for i in generating]), strict=True)
        return [told[i] for i in range(len(questions))]

    def prompt_ids(self, question: Question) -> list[int]:
        """The prompt's tokens, by the tokenizer's own rule or the model's chat template; BOS before them if asked."""
        if question.prompt_token_ids is not None:
            return list(question.prompt_token_ids)
        if question.messages is not None:
            rendered = self.tokenizer.apply_chat_template(
                list(question.messages), add_generation_prompt=True, tokenize=False
            )
            ids = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(question.prompt)["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if question.add_bos and bos is not None and ids[:1] != [bos] else list(ids)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits [S, V] of one sequence; row j is the distribution of token j + 1."""
        row = torch.tensor([list(ids)], device=self.model.device)
        return torch.as_tensor(self.model(input_ids=row, use_cache=False).logits[0])

    def _score(self, question: Question) -> Told:
        prompt = self.prompt_ids(question)
        more = [] if question.completion is None else self._continuation(question.completion)
        ids, first = prompt + more, len(prompt) if more else 1
        if len(ids) <= first or first == 0:
            raise Rejected("no_targets", "the text has no token that the teacher had a context for")
        targets = torch.tensor(ids[first:], device=self.model.device)
        found = distribution(self.logits(ids)[first - 1 : -1], targets, question.k, self.temperatures)
        text = question.prompt or "" if question.completion is None else question.completion
        return _told(text, ids[:first], ids[first:], found, question.k, self.temperatures)

    def _continuation(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _classify(self, question: Question) -> Told:
        """Each label's log-probability is that of its whole token sequence behind the prompt, over all labels."""
        prompt = self.prompt_ids(question)
        sums = []
        for label in question.labels:
            more = self._continuation(label)
            if not more or not prompt:
                raise Rejected("no_targets", f"the label {label!r} or its prompt has no tokens")
            logprobs = self.logits(prompt + more)[len(prompt) - 1 : -1].double().log_softmax(-1)
            sums.append(logprobs.gather(-1, torch.tensor(more, device=logprobs.device)[:, None]).sum())
        return told_labels(question, prompt, torch.stack(sums).log_softmax(-1).cpu().numpy())

    @torch.inference_mode()
    def _generate(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """All questions together, padded on the left; each draws from its own seed and stops at its own end."""
        states = [_Growing(question, self.prompt_ids(question)) for question in questions]
        if not all(state.prompt for state in states):
            return [Rejected("empty_prompt", "a prompt without tokens cannot be continued") for _ in questions]
        width, device = max(len(state.prompt) for state in states), self.model.device
        fed = torch.tensor([[0] * (width - len(state.prompt)) + state.prompt for state in states], device=device)
        mask = torch.tensor(
            [[0] * (width - len(state.prompt)) + [1] * len(state.prompt) for state in states], device=device
        )
        cache, ends = None, _ends(self.model, self.tokenizer)
        while any(state.growing for state in states):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -fed.shape[1] :]
            out = self.model(
                input_ids=fed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            tokens = [state.grow(out.logits[i, -1:], ends, self.temperatures) for i, state in enumerate(states)]
            fed = torch.tensor([[token] for token in tokens], device=device)
            mask = torch.cat([mask, torch.ones_like(fed)], dim=-1)
        return [self._grown(state) for state in states]

    def _grown(self, state: "_Growing") -> Told | Rejected:
        if state.rejected is not None:
            return state.rejected
        text = str(self.tokenizer.decode(state.tokens, skip_special_tokens=True))
        found = concatenated(state.parts)
        told = _told(text, state.prompt, state.tokens, found, state.question.k, self.temperatures)
        told.finish_reason = state.finish_reason
        return told

    def about(self) -> About:
        """Engine, version, vocabulary, context and chat template."""
        return _about(self.model, self.tokenizer)


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

    def grow(self, logits_1V: torch.Tensor, ends: frozenset[int], temperatures: Sequence[float]) -> int:
        """The next token; 0 when the sequence has ended."""
        if not self.growing:
            return 0
        try:
            token = draw(logits_1V[0], self.question, self._random)
            target = torch.tensor([token], device=logits_1V.device)
            self.parts.append(distribution(logits_1V, target, self.question.k, temperatures))
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


class MaskedTeacher:
    """A masked language model: a share of a text's tokens is masked, and the distributions there are the labels."""

    def __init__(self, folder: Path | str, *, device: str = "cpu", tail_temperatures: Sequence[float] = ()) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForMaskedLM.from_pretrained(folder, use_safetensors=True, dtype="auto")
        self.model: Any = model.to(torch.device(device)).eval()
        self.temperatures = tuple(tail_temperatures)

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question."""
        return [_one({"mask": self._mask}, question) for question in questions]

    @torch.inference_mode()
    def _mask(self, question: Question) -> Told:
        """Positions are chosen by the question's seed among the tokens that are not special, at least one."""
        ids = list(question.prompt_token_ids or self.tokenizer(question.prompt or "")["input_ids"])
        special = set(self.tokenizer.all_special_ids)
        free = [i for i, token in enumerate(ids) if token not in special]
        if not free:
            raise Rejected("no_targets", "the text has no token that could be masked")
        count = max(1, round(MASKED_SHARE * len(free)))
        chosen = sorted(np.random.default_rng(question.seed).choice(free, size=count, replace=False).tolist())
        masked = list(ids)
        for i in chosen:
            masked[i] = self.tokenizer.mask_token_id
        row = torch.tensor([masked], device=self.model.device)
        logits = self.model(input_ids=row).logits[0, chosen]
        realised = [ids[i] for i in chosen]
        found = distribution(logits, torch.tensor(realised, device=row.device), question.k, self.temperatures)
        told = _told(question.prompt or "", masked, realised, found, question.k, self.temperatures)
        told.target_positions = np.asarray(chosen, dtype="<i4").tobytes()
        return told

    def about(self) -> About:
        """Engine, version, vocabulary, context and chat template."""
        return _about(self.model, self.tokenizer)


def open_teacher(folder: Path | str, mode: str) -> CausalTeacher | MaskedTeacher:
    """A folder as the teacher for a mode, on the GPU if there is one. Raises EndpointStopped for what is no model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return MaskedTeacher(folder, device=device) if mode == "mask" else CausalTeacher(folder, device=device)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EndpointStopped(
            f"The teacher {folder} cannot be read as a transformers model with safetensors: {first}"
        ) from error


def _one(ways: dict[str, Callable[[Question], Told]], question: Question) -> Told | Rejected:
    if question.mode not in ways:
        return Rejected("mode_not_possible", f"this model cannot do ask.mode = {question.mode!r}")
    try:
        return ways[question.mode](question)
    except Rejected as error:
        return error


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model may have several, as chat models do."""
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)


def _about(model: Any, tokenizer: Any) -> About:
    template = getattr(tokenizer, "chat_template", None)
    return About(
        engine="transformers",
        version=f"{version('transformers')} torch {torch.__version__}",
        model=str(model.config.model_type),
        vocabulary=int(model.config.vocab_size),
        context_length=getattr(model.config, "max_position_embeddings", None),
        template=template if isinstance(template, str) else None,
    )


def _told(
    text: str, prompt: list[int], targets: list[int], found: Distribution, k: int, temperatures: Sequence[float]
) -> Told:
    """As an answer: where the vocabulary is smaller than k, columns of −1 and −inf are added."""
    short = max(0, k - found.top_ids.shape[1])
    ids = torch.nn.functional.pad(found.top_ids, (0, short), value=-1)
    logprobs = torch.nn.functional.pad(found.top_logprobs, (0, short), value=-torch.inf)
    return Told(
        text=text,
        prompt_token_ids=prompt,
        k=k,
        token_ids=np.asarray(targets, dtype="<i4").tobytes(),
        token_logprobs=_bytes(found.token_logprobs, "<f4"),
        token_ranks=_bytes(found.token_ranks, "<i4"),
        top_ids=_bytes(ids, "<i4"),
        top_logprobs=_bytes(logprobs, "<f4"),
        log_tail=_bytes(found.log_tail, "<f4"),
        tail_sums=[(t, _bytes(sums, "<f4")) for t, sums in zip(temperatures, found.tail_sums, strict=True)],
    )


def _bytes(values: torch.Tensor, dtype: str) -> bytes:
    return values.cpu().numpy().astype(dtype).tobytes()
