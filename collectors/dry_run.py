"""What a run would ask, cost and take, without asking anything: `collect --dry-run`.

Tokens are a range, since only the teacher's tokenizer knows: from plain English with short answers to one token a byte
with answers as long as allowed.
"""

from dataclasses import dataclass
from itertools import islice

from collectors.budget import Spend, likely_case, worst_case
from collectors.config import RunConfig
from collectors.gate import judge
from collectors.opening import check_askable, teacher_tokens, tokenizer_of
from collectors.plan import Plan, rejected_keys
from collectors.prompts import check_prompts, read_prompts
from collectors.record import earlier_cards
from policies.decision import Decision
from storage.table import Table


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is left of a run. `likely` and `worst` are the bounds; `minutes` is None where no limit is set.

    prompts: how many the source has; known: requests whose answers the table has; duplicates: asked once only.
    """

    prompts: int
    known: int
    duplicates: int
    likely: Spend
    worst: Spend
    minutes: tuple[float, float] | None
    decision: Decision


def estimate(config: RunConfig, *, limit: int | None = None) -> Estimate:
    """Go through the plan without asking anything. Raises PromptError, EndpointUnfit, what reading a table raises."""
    summary = check_prompts(config.prompts)
    tokenizer = tokenizer_of(config)
    check_askable(config, summary, tokenizer)
    decision = judge(config, summary.licences)
    known, cards = [], []
    if (config.table / "soft_labels").is_dir():
        table = Table.open(config.table)
        cards = earlier_cards(table, config)
        known = [table.keys(), rejected_keys(table)]
    # Without an earlier start the server's template is not known; nor is there anything in the table to compare with.
    plan = Plan(config, teacher_tokens(tokenizer, cards[-1] if cards else None), known)
    likely, worst = Spend(), Spend()
    for item in islice(plan.items(read_prompts(config.prompts)), limit):
        likely += likely_case(config.price, item)
        worst += worst_case(config.price, item)
    minutes = _minutes(config, likely), _minutes(config, worst)
    return Estimate(
        prompts=summary.prompts,
        known=plan.already_known,
        duplicates=plan.duplicates,
        likely=likely,
        worst=worst,
        minutes=None if minutes[0] is None or minutes[1] is None else (minutes[0], minutes[1]),
        decision=decision,
    )


def _minutes(config: RunConfig, spend: Spend) -> float | None:
    limits, endpoints = config.limits, len(config.pool)
    times = []
    if limits.requests_per_minute is not None:
        times.append(spend.requests / limits.requests_per_minute / endpoints)
    if limits.tokens_per_minute is not None:
        times.append(spend.tokens / limits.tokens_per_minute / endpoints)
    return max(times, default=None)
