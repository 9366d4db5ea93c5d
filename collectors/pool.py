"""Several endpoints that claim to be the same teacher: canary prompts tell whether they are, at the start and later.

Each is compared with the one that most of the others agree with, so that one odd endpoint does not condemn the rest.
"""

import asyncio
from collections.abc import Callable, Sequence

from collectors.canary import Comparison, compare, sing
from collectors.config import RunConfig
from collectors.errors import EndpointStopped, EndpointUnfit, Transient
from collectors.opening import OpenEndpoint
from collectors.tokenizer import Tokenizer
from storage.codec import Labels

CANARY_SECONDS = 300.0
Song = tuple[Labels | None, ...]


class Canaries:
    """The answers of a pool's endpoints to the canary prompts. A single endpoint has nobody to be compared with."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer | None) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._reference: Song = ()

    async def alike(self, opened: Sequence[OpenEndpoint], say: Callable[[str], None]) -> list[OpenEndpoint]:
        """The endpoints that hold the same teacher; the others are told to `say`. Raises EndpointUnfit for too few."""
        if len(opened) == 1:
            return list(opened)
        songs = [await self._song(one) for one in opened]
        votes = [sum(compare(song, other).same_teacher for other in songs) for song in songs]
        self._reference = songs[votes.index(max(votes))]
        if max(votes) * 2 <= len(songs):
            raise EndpointUnfit(
                "The endpoints of the pool answer the canary prompts differently, and no majority agrees: serve "
                "the same weights, quantisation and settings at each."
            )
        kept = []
        for one, song in zip(opened, songs, strict=True):
            found = compare(self._reference, song)
            if found.same_teacher:
                kept.append(one)
            else:
                say(f"{_name(one)} is left out: {_told(found)}.")
        return kept

    async def watch(self, opened: Sequence[OpenEndpoint], stop: Callable[[int, EndpointStopped], None]) -> None:
        """Compare the endpoints of a pool again from time to time; `stop` gets the place of one that changed."""
        alive = set(range(len(opened))) if len(opened) > 1 else set()
        while alive:
            await asyncio.sleep(CANARY_SECONDS)
            for place in sorted(alive):
                try:
                    found = compare(self._reference, await self._song(opened[place]))
                except (Transient, EndpointStopped):
                    continue  # whoever does not answer is dealt with where rows are asked for
                if not found.same_teacher:
                    alive.discard(place)
                    stop(place, _changed(opened[place], found))

    async def _song(self, one: OpenEndpoint) -> Song:
        config = self._config
        return await sing(
            one.sender, teacher=config.teacher, endpoint=one.settings, ask=config.ask, tokenizer=self._tokenizer
        )


def _name(one: OpenEndpoint) -> str:
    return f"The endpoint {one.settings.base_url or one.settings.kind}"


def _changed(one: OpenEndpoint, found: Comparison) -> EndpointStopped:
    return EndpointStopped(
        f"{_name(one)} no longer answers as the teacher of this run: {_told(found)}. Its rows of the last "
        f"{CANARY_SECONDS / 60:.0f} minutes are in doubt."
    )


def _told(found: Comparison) -> str:
    return (
        f"{found.top_1_agreement:.0%} of its best tokens agree and it diverges by {found.divergence:.3f} nats over "
        f"{found.positions} canary positions"
    )
