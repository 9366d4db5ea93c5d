"""Several endpoints that claim to be the same teacher: canary prompts tell whether they are, at the start and later.

Each is compared with the one that most of the others agree with, so that one odd endpoint does not condemn the rest.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from collectors.budget import Budget, Spend
from collectors.canary import Comparison, compare, sing, song_spend
from collectors.config import RunConfig
from collectors.errors import BudgetSpent, EndpointStopped, EndpointUnfit, Transient
from collectors.opening import OpenEndpoint
from collectors.tokenizer import Tokenizer
from storage.codec import Labels
from storage.doubts import ENDPOINT_CHANGED

CANARY_SECONDS = 300.0
_LAST_LOOK_SECONDS = 30.0
Song = tuple[Labels | None, ...]
Changed = Callable[[int, datetime, EndpointStopped], Awaitable[None]]
"""Gets the place of an endpoint in the pool, since when it is in doubt, and why."""


class Canaries:
    """The answers of a pool's endpoints to the canary prompts. A single endpoint has nobody to be compared with.

    The run's budget pays for them; what the last comparison may take is set aside before the first row is asked for.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer | None, budget: Budget) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._budget = budget
        self._reference: Song = ()
        self._last_look = Spend()
        self._good: dict[int, datetime] = {}  # place in the pool → when its last good answers began

    async def alike(self, opened: Sequence[OpenEndpoint], say: Callable[[str], None]) -> list[OpenEndpoint]:
        """The endpoints that hold the same teacher; the others are told to `say`.

        Raises EndpointUnfit for too few, BudgetSpent.
        """
        if len(opened) == 1:
            return list(opened)
        most = song_spend(self._config.price)
        self._budget.check(most * (2 * len(opened)), "the canaries of the pool, now and at the end")
        began = datetime.now(UTC)
        songs = await asyncio.gather(*(self._song(one) for one in opened))
        votes = [sum(compare(song, other).same_teacher for other in songs) for song in songs]
        self._reference = songs[votes.index(max(votes))]
        if max(votes) * 2 <= len(songs):
            raise EndpointUnfit(
                "The endpoints of the pool answer the canary prompts differently, and no majority agrees: serve "
                "the same weights, quantisation and settings at each."
            )
        kept: list[OpenEndpoint] = []
        for one, song in zip(opened, songs, strict=True):
            found = compare(self._reference, song)
            if found.same_teacher:
                self._good[len(kept)] = began
                kept.append(one)
            else:
                say(f"{_name(one)} is left out: {_told(found)}.")
        self._last_look = most * len(kept)
        self._budget.set_aside(self._last_look, "the canaries at the end")
        return kept

    async def watch(self, opened: Sequence[OpenEndpoint], changed: Changed) -> None:
        """Compare the endpoints of a pool again from time to time, while the budget covers more than the last look.

        `changed` is told of one that is another teacher.
        """
        with suppress(BudgetSpent):
            while self._good:
                await asyncio.sleep(CANARY_SECONDS)
                await self._look(opened, changed)

    async def last_look(self, opened: Sequence[OpenEndpoint], changed: Changed) -> None:
        """Compare them once more at the end, so that no row is left unwatched; who does not answer in time is not."""
        self._budget.release(self._last_look)
        self._last_look = Spend()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_LOOK_SECONDS):
                await self._look(opened, changed)

    async def _look(self, opened: Sequence[OpenEndpoint], changed: Changed) -> None:
        places, began = sorted(self._good), datetime.now(UTC)
        songs = await asyncio.gather(*(self._song(opened[place]) for place in places), return_exceptions=True)
        for place, song in zip(places, songs, strict=True):
            if isinstance(song, Transient | EndpointStopped):
                continue  # whoever does not answer is dealt with where rows are asked for
            if isinstance(song, BaseException):
                raise song
            found = compare(self._reference, song)
            if found.same_teacher:
                self._good[place] = began
            else:
                since = self._good.pop(place)
                await changed(place, since, _changed(opened[place], found, since))

    async def _song(self, one: OpenEndpoint) -> Song:
        config = self._config
        return await sing(
            one.sender,
            teacher=config.teacher,
            endpoint=one.settings,
            ask=config.ask,
            tokenizer=self._tokenizer,
            budget=self._budget,
            price=config.price,
        )


def _name(one: OpenEndpoint) -> str:
    return f"The endpoint {one.settings.base_url or one.settings.kind}"


def _changed(one: OpenEndpoint, found: Comparison, since: datetime) -> EndpointStopped:
    return EndpointStopped(
        f"{_name(one)} no longer answers as the teacher of this run: {_told(found)}. Its rows since {since:%H:%M:%S} "
        f"UTC, when it last did, are flagged {ENDPOINT_CHANGED}."
    )


def _told(found: Comparison) -> str:
    return (
        f"{found.top_1_agreement:.0%} of its best tokens agree and it diverges by {found.divergence:.3f} nats over "
        f"{found.positions} canary positions"
    )
