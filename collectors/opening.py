"""From a run file to endpoints that can be asked: the embedded server started, the tokenizer read, a probe made, and
the card compared with what the run needs. What cannot serve the run stops it here, before anything is paid for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from collectors.budget import Budget, Spend
from collectors.card import EndpointCard, contradictions, warnings
from collectors.config import EndpointSettings, RunConfig
from collectors.errors import EndpointStopped, EndpointUnfit, Rejected, Transient
from collectors.http import HttpSender, Sender
from collectors.plan import TeacherTokens
from collectors.probe import least_spend, probe
from collectors.prompts import PromptSummary
from collectors.providers import Provider, local_sender, local_tokenizer, provider, unfit_prompts
from collectors.providers.embedded import EmbeddedServer, default_gguf
from collectors.retry import attempts
from collectors.tokenizer import Tokenizer, load_tokenizer
from storage.rows import TeacherRecord

# Connections that a pool may hold beyond the requests in flight: probes and health checks.
_SPARE_CONNECTIONS = 8
_ADAPTIVE_CONNECTIONS = 512
_PROBE_TRIES = 3


@dataclass(frozen=True, slots=True)
class OpenEndpoint:
    """One endpoint that answers: where to send, and what it is."""

    sender: Sender
    settings: EndpointSettings
    card: EndpointCard


def tokenizer_of(config: RunConfig) -> Tokenizer | None:
    """The teacher's tokenizer: the file that is named, or the model's own where it runs here, or None."""
    if config.teacher.tokenizer is not None:
        return load_tokenizer(config.teacher.tokenizer)
    first = config.pool[0]
    if first.kind == "embedded":
        return load_tokenizer(first.model_path or default_gguf())
    if first.kind == "local":
        file = local_tokenizer(config.teacher, first)
        return None if file is None else load_tokenizer(file)
    return None


def teacher_tokens(tokenizer: Tokenizer | None, card: EndpointCard | None) -> TeacherTokens:
    """The hashes that keys and rows carry; what the server says of its template wins over the tokenizer's own."""
    return TeacherTokens(
        tokenizer_sha256=None if tokenizer is None else tokenizer.sha256,
        template_sha256=(card and card.template_sha256) or (tokenizer and tokenizer.template_sha256) or None,
    )


def teacher_record(config: RunConfig, card: EndpointCard) -> TeacherRecord:
    """The teacher as each row names it."""
    first = config.pool[0]
    return TeacherRecord(
        model=config.teacher.model,
        revision=config.teacher.revision,
        provider=first.kind,
        access_path=first.access_path,
        served_by=first.served_by,
        engine=card.engine,
        engine_version=card.engine_version,
        endpoint_card=card.digest,
    )


def provider_for(config: RunConfig, card: EndpointCard | None, tokenizer: Tokenizer | None) -> Provider:
    """The provider that builds requests and reads responses for this card."""
    first = config.pool[0]
    return provider(
        first.wire_kind, teacher=config.teacher, endpoint=first, ask=config.ask, card=card, tokenizer=tokenizer
    )


@asynccontextmanager
async def open_endpoints(
    config: RunConfig, tokenizer: Tokenizer | None, budget: Budget | None = None
) -> AsyncIterator[list[OpenEndpoint]]:
    """All endpoints of the pool, probed; a run's `budget` pays for that, and one that cannot ends it at once.

    Raises EndpointStopped, EndpointUnfit, ProviderUnavailable, BudgetSpent.
    """
    if budget is not None:
        least = sum((least_spend(one, config.ask, config.price) for one in config.pool), Spend(1))
        budget.check(least, "a probe of the endpoint and a request")
    async with AsyncExitStack() as stack:
        opened: list[OpenEndpoint] = []
        for settings in config.pool:
            if settings.kind == "local":
                local = await asyncio.to_thread(local_sender, config.teacher, settings, config.ask)
                stack.push_async_callback(local.aclose)
                opened.append(OpenEndpoint(local, settings, await _probed(local, config, settings, tokenizer, budget)))
                continue
            url = settings.base_url
            if settings.kind == "embedded":
                server = EmbeddedServer(
                    gguf=settings.model_path, context_length=settings.context_length, slots=settings.slots
                )
                stack.callback(server.stop)
                await asyncio.to_thread(server.__enter__)
                url = server.base_url
            assert url is not None  # RunConfig requires it for every other kind
            concurrency = config.limits.concurrency
            sender = HttpSender(
                url,
                api_key=settings.api_key(),
                connections=_SPARE_CONNECTIONS + (_ADAPTIVE_CONNECTIONS if concurrency == "adaptive" else concurrency),
                timeout_seconds=settings.timeout_seconds,
            )
            stack.push_async_callback(sender.aclose)
            card = await _probed(sender, config, settings, tokenizer, budget)
            opened.append(OpenEndpoint(sender, settings, card))
        yield opened


async def _probed(
    sender: Sender,
    config: RunConfig,
    settings: EndpointSettings,
    tokenizer: Tokenizer | None,
    budget: Budget | None,
) -> EndpointCard:
    try:
        async for attempt in attempts(_PROBE_TRIES):
            with attempt:
                return await probe(
                    sender,
                    teacher=config.teacher,
                    endpoint=settings,
                    ask=config.ask,
                    tokenizer=tokenizer,
                    budget=budget,
                    price=config.price,
                )
    except Transient as error:
        raise EndpointStopped(f"The endpoint does not answer: {error} Start it, or correct base_url.") from error
    except Rejected as error:
        raise EndpointUnfit(f"The endpoint cannot be used: {error}.") from error
    raise AssertionError("tenacity ends by returning or raising")


def check_askable(config: RunConfig, summary: PromptSummary, tokenizer: Tokenizer | None) -> None:
    """Raise EndpointUnfit when the endpoint's kind cannot be asked with these prompts: each would be a reject."""
    if (why := unfit_prompts(config.pool[0], config.ask, summary.shapes)) is not None:
        raise EndpointUnfit(why)
    if config.ask.bos == "add" and config.pool[0].kind != "local" and (not tokenizer or tokenizer.bos_token_id is None):
        raise EndpointUnfit("ask.bos = 'add' needs a teacher.tokenizer that has a BOS: give it, or use bos = 'server'.")


def check_fit(config: RunConfig, card: EndpointCard) -> list[str]:
    """Raise EndpointUnfit when the card contradicts the run; → what else is worth knowing."""
    found = contradictions(card, config.ask)
    if found:
        raise EndpointUnfit(" ".join(found))
    return warnings(card)
