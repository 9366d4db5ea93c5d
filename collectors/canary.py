"""Do two endpoints hold the same teacher? A few fixed prompts, answered greedily, compared by their distributions.

Batching moves log-probabilities a little, another quantisation or model moves them a lot; the limits lie between.
A sequence is compared only as long as both answers have the same tokens: behind that the contexts differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collectors.budget import Budget, Spend, worst_case
from collectors.config import AskSettings, EndpointSettings, PriceSettings, TeacherSettings
from collectors.errors import Rejected
from collectors.http import Response, Sender
from collectors.paying import PayingSender
from collectors.plan import Item
from collectors.providers import provider
from collectors.retry import check_status
from collectors.tokenizer import Tokenizer
from storage.codec import Labels

PROMPTS = (
    "The still was charged at noon. By three o'clock the",
    "def mean(values):\n    return sum(values) /",
    "Water boils at a temperature of",
    "昔々、あるところに",
    "Der schnelle braune Fuchs springt über den",
    "Q: What is the capital of France?\nA:",
    '{"name": "Ada", "born": 18',
    "Once upon a time there was a",
)
_TOKENS = 4
_CANDIDATES = 20

TOP_1_AGREEMENT = 0.9
"""At least this share of compared positions has the same best token, or a near tie in the reference."""

DIVERGENCE_NATS = 0.03
"""At most this mean divergence. Measured with Gemma 3 270M in llama.cpp, against its Q4_K_M at one slot: the same
file at four busy slots 0.001 to 0.003, as Q8_0 0.003 (more bits than the source: the same numbers), as Q4_0 0.37."""

_NEAR_TIE_NATS = 0.25  # batching moves log-probabilities by up to 0.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two endpoints on the same prompts: share of equal best tokens, mean divergence in nats, positions compared.

    Near ties count as equal: batching alone turns them round.
    """

    top_1_agreement: float
    divergence: float
    positions: int

    @property
    def same_teacher(self) -> bool:
        """Whether both hold the same teacher, as far as canaries can tell; never where nothing could be compared."""
        return self.top_1_agreement >= TOP_1_AGREEMENT and self.divergence <= DIVERGENCE_NATS


async def sing(
    sender: Sender,
    *,
    teacher: TeacherSettings,
    endpoint: EndpointSettings,
    ask: AskSettings,
    tokenizer: Tokenizer | None = None,
    budget: Budget | None = None,
    price: PriceSettings | None = None,
) -> tuple[Labels | None, ...]:
    """The endpoint's answers to PROMPTS, greedy, with at most ask.top_k candidates; None where one gave no labels.

    They are paid out of `budget`. Raises TransportError, ServerBusy, EndpointStopped or BudgetSpent.
    """
    paying = PayingSender(sender, budget, price)
    asked = AskSettings(top_k=min(ask.top_k, _CANDIDATES), temperature=0.0, max_tokens=_TOKENS, bos=ask.bos)
    one = provider(endpoint.kind, teacher=teacher, endpoint=endpoint, ask=asked, tokenizer=tokenizer)
    answers: list[Labels | None] = []
    for text in PROMPTS:
        item = _canary(text)
        try:
            while (first := one.prepare(item)) is not None:
                item = one.prepared(item, _checked(await paying.send(first)).body)
            answers.append(one.read(item, _checked(await paying.ask(one, item)).body).labels)
        except Rejected:
            answers.append(None)
    return tuple(answers)


def song_spend(price: PriceSettings | None) -> Spend:
    """The most that all of PROMPTS can take at one endpoint, with a request to tokenize each."""
    return sum((worst_case(price, _canary(text)) + Spend(1) for text in PROMPTS), Spend())


def _canary(text: str) -> Item:
    return Item(key="", prompt_id="canary", sample_index=0, prompt=text, max_tokens=_TOKENS)


def _checked(response: Response) -> Response:
    check_status(response)
    return response


def compare(reference: Sequence[Labels | None], other: Sequence[Labels | None]) -> Comparison:
    """Compare answers to the same prompts; the numbers are 0, inf and 0 where nothing can be compared."""
    equal, apart = [], []
    for one, two in zip(reference, other, strict=True):
        if one is None or two is None:
            continue
        for position in range(_comparable(one.token_ids, two.token_ids)):
            equal.append(_same_best(one, two, position))
            apart.append(divergence(one, two, position))
    if not equal:
        return Comparison(0.0, float("inf"), 0)
    return Comparison(float(np.mean(equal)), float(np.mean(apart)), len(equal))


def _comparable(one: NDArray[np.int32], two: NDArray[np.int32]) -> int:
    """Positions with the same context: up to and with the first at which the tokens differ."""
    shorter = min(len(one), len(two))
    differ = np.flatnonzero(one[:shorter] != two[:shorter])
    return int(differ[0]) + 1 if differ.size else shorter


def _same_best(one: Labels, two: Labels, position: int) -> bool:
    best = one.top_logprobs[position]
    tie = one.k > 1 and best[0] - best[1] < _NEAR_TIE_NATS
    return bool(tie or one.top_ids[position, 0] == two.top_ids[position, 0])


def divergence(one: Labels, two: Labels, position: int) -> float:
    """KL(one ‖ two) in nats at a position, over the ids that both name and one bucket for all others.

    A lower bound of the whole divergence, since joining outcomes only loses some of it (data processing inequality).
    """
    ids, first, second = np.intersect1d(one.top_ids[position], two.top_ids[position], return_indices=True)
    named = ids >= 0
    p = np.exp(one.top_logprobs[position].astype(np.float64))[first[named]]
    q = np.exp(two.top_logprobs[position].astype(np.float64))[second[named]]
    p, q = (np.append(each, max(1.0 - each.sum(), 1e-9)) for each in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
