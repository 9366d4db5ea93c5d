"""A run from its file to the table: plan → gate → send → keep → commit. Run it again and it goes on where it stopped.

The order is the promise: the run is held before anything else, decided before anything is asked, and what an earlier
start left in the journal becomes rows before the first new request.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice

from collectors.asking import Answer, Endpoint
from collectors.bookmark import Bookmark, Mark, TeacherTokens, found_again
from collectors.budget import Budget, Spend
from collectors.card import EndpointCard
from collectors.config import RunConfig
from collectors.errors import BudgetSpent, EndpointStopped, PolicyRefused, Rejected, ReviewNeeded
from collectors.gate import Gate
from collectors.keeping import Counts, Keeper, Received, received, rejected
from collectors.labelling import Provenance, Readers, provenance
from collectors.opening import (
    OpenEndpoint,
    check_askable,
    check_fit,
    open_endpoints,
    provider_for,
    teacher_record,
    teacher_tokens,
    tokenizer_of,
)
from collectors.plan import Item, Plan, rejected_keys
from collectors.pool import Canaries
from collectors.progress import RunState, Silent, Watcher
from collectors.prompts import PromptSummary, check_prompts, read_prompts
from collectors.record import Chronicle
from collectors.report import RunReport
from collectors.sending import Sending, Source
from collectors.stopping import run_until_stopped
from storage.doubts import Doubt
from storage.journal import Journal
from storage.keys import KeySet
from storage.ledgers import Reject
from storage.rows import Row
from storage.table import Table

_TICK_SECONDS = 0.2
_UNREADABLE = 50
"""So many answers that nobody can read, and never a row: the next ones would be paid for in vain too."""


def collect(config: RunConfig, *, limit: int | None = None, watcher: Watcher | None = None) -> RunReport:
    """Collect what the run asks for and its table does not have yet, at most `limit` requests of it.

    Ctrl-C and SIGTERM stop it gently: what is in flight is awaited for a while, all that was received is committed.
    Raises storage.errors.RunHeld when another process holds the run, PromptError, PolicyRefused, ReviewNeeded,
    EndpointUnfit, EndpointStopped (all that was received is committed then), and what the disk raises.
    """
    return run_until_stopped(lambda stop: _Run(config, limit, watcher or Silent(), stop).collect())


async def collect_until(config: RunConfig, stop: asyncio.Event, *, watcher: Watcher) -> RunReport:
    """`collect` inside an event loop of the caller's, who sets `stop` to end it gently; signals are the caller's."""
    return await _Run(config, None, watcher, stop).collect()


def probe_endpoints(config: RunConfig) -> list[EndpointCard]:
    """The card of each endpoint of the run. The policies decide first: a probe asks the teacher too.

    Raises PolicyRefused, ReviewNeeded, EndpointStopped, EndpointUnfit.
    """
    Gate(config, (config.prompts.licence,))

    async def ask(stop: asyncio.Event) -> list[EndpointCard]:
        async with open_endpoints(config, await asyncio.to_thread(tokenizer_of, config)) as opened:
            return [one.card for one in opened]

    return run_until_stopped(ask)


class _Run:
    """One start of a run."""

    def __init__(self, config: RunConfig, limit: int | None, watcher: Watcher, stop: asyncio.Event) -> None:
        self._config = config
        self._limit = limit
        self._watcher = watcher
        self._stop = stop
        self._state = RunState()
        self._plan: Plan | None = None
        self._recovered = 0
        self._known: tuple[KeySet, KeySet] | None = None
        self._start: Mark | None = None
        self._tokens_before = TeacherTokens()
        self._sending: Sending | None = None
        self._ended: tuple[str, str] | None = None  # outcome and sentence, where the run itself ended the start
        self._unreadable: int | None = 0  # answers in a row that were none, until there is a row
        self._began = time.monotonic()

    async def collect(self) -> RunReport:
        """From the gate to the report."""
        config = self._config
        with ExitStack() as stack:
            held = stack.enter_context(_hold(config)) if (config.table / "soft_labels").is_dir() else None
            self._tokenizer = await asyncio.to_thread(tokenizer_of, config)
            if held is not None:
                self._start = await asyncio.to_thread(self._place)
            summary = await asyncio.to_thread(check_prompts, config.prompts, self._start)
            check_askable(config, summary, self._tokenizer)
            self._gate = Gate(config, summary.licences)
            for endpoint in config.pool:
                endpoint.api_key()  # a missing key is told before anything is made or asked
            self._table = await asyncio.to_thread(Table.open_or_create, config.table)
            self._journal = stack.enter_context(_hold(config)) if held is None else held
            self._gate.open(self._table)
            self._chronicle = Chronicle(self._table, config)
            self._chronicle.decision = self._gate.decision
            self._budget = Budget(config.budget, self._chronicle.spent)
            self._spent_before = self._budget.spent
            return await self._go_on(summary)

    def _place(self) -> Mark | None:
        """Where an earlier start had come to in the prompt file."""
        chronicle = Chronicle(Table.open(self._config.table), self._config)
        if not chronicle.cards:
            return None
        self._tokens_before = teacher_tokens(self._tokenizer, chronicle.cards[-1])
        return found_again(self._config.prompts.path, self._tokens_before, chronicle.place)

    async def _go_on(self, summary: PromptSummary) -> RunReport:
        config, chronicle = self._config, self._chronicle
        self._readers = Readers(lambda card: provider_for(config, card, self._tokenizer), chronicle.cards)
        self._keeper = Keeper(
            self._journal,
            self._table,
            self._readers,
            config.run_id,
            keep_raw=config.keep_raw,
            may_write=self._gate.pass_write,
            settled=self._settled,
            committed=self._committed,
        )
        self._new_prompts = summary.prompts
        if self._start is not None:
            chronicle.bookmark = Bookmark(config.prompts.path, self._tokens_before, self._start)
        old = 0 if self._start is None else self._start.prompts
        chronicle.planned = (old + summary.prompts) * config.ask.samples
        self._state.planned = chronicle.planned if self._limit is None else min(self._limit, chronicle.planned)
        await asyncio.to_thread(self._recover)
        if chronicle.cards and not await asyncio.to_thread(self._something_to_ask, chronicle.cards[-1]):
            return await asyncio.to_thread(self._end)
        self._state.note = "starting the teacher" if config.pool[0].kind == "embedded" else "probing the endpoint"
        try:
            await self._ask()
        except BudgetSpent as error:
            self._ended = ("budget", str(error))
        return await asyncio.to_thread(self._end)

    async def _ask(self) -> None:
        """Open what is to be asked, ask, and keep. Raises BudgetSpent where its probe or canaries are not covered."""
        async with self._ticking(), open_endpoints(self._config, self._tokenizer, self._budget) as opened:
            for line in [line for one in opened for line in check_fit(self._config, one.card)]:
                self._watcher.say(f"note: {line}")
            canaries = Canaries(self._config, self._tokenizer, self._budget)
            alike = await canaries.alike(opened, self._watcher.say)
            await asyncio.to_thread(self._prepare, alike)
            watching = asyncio.create_task(canaries.watch(alike, self._changed))
            try:
                await self._send_and_keep()
            except (PolicyRefused, ReviewNeeded) as error:
                await asyncio.to_thread(self._refused, error)
                raise
            finally:
                watching.cancel()
                [watched] = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(watched, Exception):
                raise watched
            await canaries.last_look(alike, self._changed)

    def _committed(self, counts: Counts, keys: Sequence[str]) -> None:
        if self._chronicle.bookmark is not None:
            self._chronicle.bookmark.committed(keys)
        self._chronicle.decision = self._gate.decision
        self._chronicle.save("running", counts, self._budget)

    async def _changed(self, place: int, since: datetime, reason: EndpointStopped) -> None:
        """Ask nothing more of an endpoint that is another teacher now; flag what it gave since it was the right one."""
        assert self._sending is not None
        self._watcher.say(str(reason))
        endpoint = self._sending.endpoints[place]
        self._sending.retire(endpoint, reason, self._stop)
        # What is in flight may still be answered, for as long as one exchange may take.
        until = datetime.now(UTC) + timedelta(seconds=max(one.timeout_seconds for one in self._config.pool))
        doubt = Doubt(
            run_id=self._config.run_id, endpoint_card=endpoint.card, since=since, until=until, reason=str(reason)
        )
        await asyncio.to_thread(self._keeper.doubt, doubt)

    def _recover(self) -> None:
        """Rows of what an earlier start received; what it spent on them after it last saved its record counts too."""
        saved = self._chronicle.last_saved
        for raw, outcome in self._keeper.recover():
            if saved is None or raw.received_at > saved:
                self._budget.spent += _spent(outcome)
        self._recovered = self._keeper.counts.committed + self._keeper.counts.rejected
        if self._keeper.counts.committed or self._chronicle.stored:
            self._unreadable = None
        if count := self._keeper.counts.committed:
            self._watcher.say(f"{count:,} rows from what an earlier start had received")

    def _plan_for(self, card: EndpointCard) -> Plan:
        tokens = teacher_tokens(self._tokenizer, card)
        if self._config.prompts.path.is_file():
            self._chronicle.bookmark = Bookmark(self._config.prompts.path, tokens, self._start)
        if self._known is None:  # this start commits nothing between two plans, so they are loaded once
            # A table of its own: the keys of the one that is written to change while the plan is read.
            table = Table.open(self._config.table)
            self._known = (table.keys(), rejected_keys(table))
        return Plan(self._config, tokens, self._known, self._chronicle.bookmark)

    def _something_to_ask(self, card: EndpointCard) -> bool:
        if self._start is not None and self._new_prompts == 0:
            self._plan = None
            return False
        self._plan = self._plan_for(card)
        return next(self._plan.items(read_prompts(self._config.prompts, self._start)), None) is not None

    def _prepare(self, opened: Sequence[OpenEndpoint]) -> None:
        config, card = self._config, opened[0].card
        self._chronicle.add_cards([one.card for one in opened])
        if self._tokenizer is not None:
            self._table.save_tokenizer(self._tokenizer.data)
        tokens = teacher_tokens(self._tokenizer, card)
        self._shared = {
            one.card.digest: provenance(
                config, teacher=teacher_record(config, one.card), tokens=tokens, clearance=self._gate.clearance
            )
            for one in opened
        }
        self._chronicle.save("running", self._keeper.counts, self._budget)
        if self._start is not None and tokens != self._tokens_before:
            self._start = None  # the teacher's tokens are others than those that the place was kept for
        self._plan = self._plan_for(card)
        items = islice(self._plan.items(read_prompts(config.prompts, self._start)), self._limit)
        self._sending = Sending(
            [self._endpoint(one) for one in opened],
            Source(items),
            answered=self._keep_answer,
            rejected=self._keep_rejected,
        )

    def _endpoint(self, one: OpenEndpoint) -> Endpoint:
        config, limits = self._config, self._config.limits
        if one.settings.kind == "embedded" and limits.concurrency != "adaptive":
            # One more than it can serve keeps it busy; others would only wait there, and be asked again after a kill.
            limits = limits.model_copy(update={"concurrency": min(limits.concurrency, one.settings.slots + 1)})
        reader = self._readers.add(one.card)
        return Endpoint(
            one.sender, reader, card=one.card.digest, allowed=limits, price=config.price, budget=self._budget
        )

    async def _send_and_keep(self) -> None:
        assert self._sending is not None
        self._state.note = ""
        keeping = asyncio.create_task(self._keeper.work())
        sending = asyncio.create_task(self._sending.run(self._stop))
        try:
            await asyncio.wait({keeping, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Whatever happened to the one, the other ends in order: all that was received is committed.
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            if not keeping.done():
                await self._keeper.close()
            await keeping
        sending.result()

    def _refused(self, error: PolicyRefused | ReviewNeeded) -> None:
        """The gate stopped the run in its midst: the record says why, the journal keeps what was received."""
        self._chronicle.decision = self._gate.decision
        self._chronicle.save("stopped", self._keeper.counts, self._budget, str(error))

    async def _keep_answer(self, answer: Answer) -> None:
        self._state.received += 1
        await self._keeper.keep(received(self._share(answer.endpoint.card), answer))

    async def _keep_rejected(self, item: Item, error: Rejected) -> None:
        self._state.received += 1
        await self._keeper.keep(rejected(self._share(next(iter(self._shared))), item, error))

    def _share(self, card: str) -> Provenance:
        """What rows that an endpoint gives now share: under the decision that holds now."""
        if self._shared[card].clearance is not self._gate.clearance:
            self._shared[card] = replace(self._shared[card], clearance=self._gate.clearance)
        return self._shared[card]

    def _settled(self, one: Received, outcome: Row | Reject) -> None:
        if one.answer is not None:
            usage = outcome.usage if isinstance(outcome, Row) else None
            prompt, completion = (None, None) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
            one.answer.endpoint.settle(one.answer, prompt, completion)
            self._heed(outcome)

    def _heed(self, outcome: Row | Reject) -> None:
        """Stop when the first answers are all unreadable; what is in flight is still kept."""
        if self._unreadable is None or isinstance(outcome, Row):
            self._unreadable = None
            return
        self._unreadable += 1
        if self._unreadable == _UNREADABLE:
            self._ended = (
                "part",
                f"None of the first {_UNREADABLE} answers can be read ({outcome.reason}: {outcome.detail}), so no more "
                "are asked for: compare endpoint.kind with what the server is, and run the same command again.",
            )
            self._stop.set()

    @asynccontextmanager
    async def _ticking(self) -> AsyncIterator[None]:
        async def tick() -> None:
            while True:
                self._watcher.update(self._look())
                await asyncio.sleep(_TICK_SECONDS)

        task = asyncio.create_task(tick())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._watcher.update(self._look())

    def _look(self) -> RunState:
        state, counts = self._state, self._keeper.counts
        state.committed, state.rejected, state.tokens = counts.committed, counts.rejected, counts.tokens
        state.duplicates = counts.duplicates
        state.usd = self._budget.spent.usd - self._spent_before.usd
        if self._plan is not None:
            state.duplicates += self._plan.duplicates
            old = 0 if self._start is None else self._start.prompts * self._config.ask.samples
            state.done_before = old + self._plan.already_known - self._recovered if self._limit is None else 0
        return state

    def _end(self) -> RunReport:
        """Save how it ended and report it; raise what stopped the last endpoint."""
        outcome, detail = self._outcome()
        self._chronicle.save(outcome, self._keeper.counts, self._budget, detail)
        if self._sending is not None and isinstance(self._sending.ended_by, EndpointStopped):
            raise self._sending.ended_by
        counts, spent = self._look(), self._budget.spent - self._spent_before
        return RunReport(
            run_id=self._config.run_id,
            outcome=outcome,
            detail=detail,
            planned=self._chronicle.planned,
            committed=counts.committed,
            rejected=counts.rejected,
            duplicates=counts.duplicates,
            unanswered=self._sending.unanswered if self._sending is not None else 0,
            requests=spent.requests,
            tokens=counts.tokens,
            usd=spent.usd,
            seconds=time.monotonic() - self._began,
        )

    def _outcome(self) -> tuple[str, str]:
        if self._ended is not None:
            return self._ended
        sending, counts = self._sending, self._keeper.counts
        nothing = self._plan is None or self._plan.planned == 0
        if sending is None or (nothing and not self._stop.is_set()):  # a stop may come before anything is planned
            new = counts.committed + counts.rejected
            return "done" if new else "nothing to do", "All that the run asks for is in the table."
        if isinstance(sending.ended_by, BudgetSpent):
            return "budget", str(sending.ended_by)
        if sending.ended_by is not None:
            return "stopped", str(sending.ended_by)
        if self._stop.is_set():
            return "interrupted", "The same command goes on from here."
        if sending.unanswered:
            return "part", f"The same command asks again for what was not answered; last: {sending.last_trouble}"
        if counts.rejected:
            return "part", 'Why: potstill sql TABLE "SELECT reason, detail FROM rejects".'
        return "done", ""


def _hold(config: RunConfig) -> Journal:
    return Journal.open(config.table / "journal", config.run_id)


def _spent(outcome: Row | Reject) -> Spend:
    usage = outcome.usage if isinstance(outcome, Row) else None
    if usage is None:
        return Spend(1)
    return Spend(1, usage.prompt_tokens or 0, usage.completion_tokens or 0, usage.cost_usd or 0.0)
