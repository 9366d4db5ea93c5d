"""Logits → labels: the exact tail, its sums at other temperatures, draws from it, or all of the distribution.

A few positions at a time are turned into double, since [T, V] in double would not fit beside a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from collectors.errors import Rejected
from collectors.providers.in_process import Question

_POSITIONS_TOGETHER = 64
# Candidates that one row may have: 512 MB.
_CANDIDATES_OF_ONE = 2**26


@dataclass(frozen=True)
class Distribution:
    """Labels of T targets from full logits, as in storage.codec.Labels, and log Σ_tail p^{1/t} by temperature t.

    top_weights: of an estimator `sampled`: p of the exact candidates, r · draws / all draws of those drawn from the
    tail of mass r. Σ w · f is then unbiased for the mean of f over the whole distribution.
    """

    token_logprobs: torch.Tensor  # (T) double
    token_ranks: torch.Tensor  # (T)
    top_ids: torch.Tensor  # (T, k), −1 = missing
    top_logprobs: torch.Tensor  # (T, k) double
    log_tail: torch.Tensor  # (T) double
    tail_sums: tuple[torch.Tensor, ...]  # (T) double, one for each temperature
    top_weights: torch.Tensor | None = None  # (T, k) double


def distribution(
    logits_TV: torch.Tensor, target_ids_T: torch.Tensor, wanted: Question, random: torch.Generator | None = None
) -> Distribution:
    """Labels from logits [T, V] for targets [T], in double, as `wanted` says. Raises Rejected when a logit is NaN or
    +inf. random: of the draws of an estimator `sampled`; by default begun from the question's seed."""
    if wanted.estimator == "full" and logits_TV.shape[0] * logits_TV.shape[1] > _CANDIDATES_OF_ONE:
        raise Rejected("too_many_candidates", f"{len(logits_TV)} whole distributions of {logits_TV.shape[1]} tokens")
    random = random or torch.Generator().manual_seed(wanted.seed)
    pieces = range(0, len(target_ids_T), _POSITIONS_TOGETHER)
    return concatenated(
        [
            _distribution(
                logits_TV[at : at + _POSITIONS_TOGETHER].double(),
                target_ids_T[at : at + _POSITIONS_TOGETHER],
                wanted,
                random,
            )
            for at in pieces
        ]
    )


def _distribution(
    logits: torch.Tensor, targets: torch.Tensor, wanted: Question, random: torch.Generator
) -> Distribution:
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise Rejected("nan", "the model gave a logit that is no number")
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, targets[:, None])
    vocabulary = logits.shape[1]
    top, ids = logprobs.topk(vocabulary if wanted.estimator == "full" else min(wanted.k, vocabulary))
    tail = logprobs.scatter(-1, ids, -torch.inf)
    ids = ids.masked_fill(torch.isneginf(top), -1)
    weights = None
    if wanted.estimator == "sampled":
        ids, top, weights = _with_draws(ids, top, tail, wanted.draws, random)
    return Distribution(
        token_logprobs=own[:, 0],
        token_ranks=(logprobs > own).sum(-1) + 1,
        top_ids=ids,
        top_logprobs=top,
        log_tail=tail.logsumexp(-1),
        tail_sums=tuple((tail / t).logsumexp(-1) for t in wanted.tail_sums),
        top_weights=weights,
    )


def _with_draws(
    ids: torch.Tensor, top: torch.Tensor, tail: torch.Tensor, draws: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The candidates and those drawn with replacement from `tail`, which loses them: ids, log p, weights [T, k + more].

    Sampling in proportion to p, as Anshumann et al. 2025 (arXiv:2503.16870) do, behind an exact head.
    """
    new_ids, new_logprobs, new_weights = [], [], []
    for position in range(len(tail)):
        p = tail[position].exp()
        rest = p.sum()
        if rest == 0:
            found, share = ids.new_empty(0), top.new_empty(0)
        else:
            drawn = torch.multinomial(p.cpu(), draws, replacement=True, generator=random).to(ids.device)
            found, counts = torch.unique(drawn, return_counts=True)
            order = tail[position][found].argsort(descending=True)
            found, share = found[order], rest * counts[order] / draws
        new_ids.append(found)
        new_logprobs.append(tail[position][found])
        new_weights.append(share)
        tail[position][found] = -torch.inf
    return (
        torch.cat([ids, _padded(new_ids, -1)], dim=1),
        torch.cat([top, _padded(new_logprobs, -torch.inf)], dim=1),
        torch.cat([top.exp(), _padded(new_weights, 0.0)], dim=1),
    )


def _padded(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def concatenated(parts: Sequence[Distribution]) -> Distribution:
    """Distributions of one sequence, joined along its positions; at least one."""

    def joined(tensors: Sequence[torch.Tensor], value: float) -> torch.Tensor:
        most = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([_wider(tensor, most, value) for tensor in tensors])

    weights = [part.top_weights for part in parts if part.top_weights is not None]
    return Distribution(
        token_logprobs=torch.cat([part.token_logprobs for part in parts]),
        token_ranks=torch.cat([part.token_ranks for part in parts]),
        top_ids=joined([part.top_ids for part in parts], -1),
        top_logprobs=joined([part.top_logprobs for part in parts], -torch.inf),
        log_tail=torch.cat([part.log_tail for part in parts]),
        tail_sums=tuple(torch.cat(sums) for sums in zip(*(part.tail_sums for part in parts), strict=True)),
        top_weights=joined(weights, 0.0) if weights else None,
    )


def _wider(tensor: torch.Tensor, columns: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[1]), value=value)
