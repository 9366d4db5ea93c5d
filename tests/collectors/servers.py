"""A real HTTP server that speaks llama.cpp's protocol with made-up numbers, and does servers' wrongs on request."""

import asyncio
import gzip
import json
import math
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Fault = Callable[["Ask"], "str | None"]
VOCABULARY = 1000
LARGEST_K = 64
BUSY = (408, 409, 425, 500, 502, 503, 504, 529)


class Ask:
    """One request for a completion, as the server saw it."""

    def __init__(self, number: int, body: Mapping[str, Any], attempt: int) -> None:
        self.number = number
        self.body = body
        self.attempt = attempt  # 1 for the first time that this prompt and seed were asked
        self.prompt = tuple(body["prompt"])
        self.at = time.monotonic()

    @property
    def prompt_number(self) -> int | None:
        """Which of runs.write_prompts this is; None for a probe."""
        text = "".join(chr(token - 3) for token in self.prompt[1:])
        return int(text.removeprefix("Prompt ")) if text.startswith("Prompt ") else None


def tokens_of(text: str) -> list[int]:
    """Two, for BOS, and a token for each character."""
    return [2, *(3 + ord(letter) % (VOCABULARY - 3) for letter in text)]


def completion(body: Mapping[str, Any], tokens: int = 6) -> dict[str, Any]:
    """A whole, valid answer of `/completion` that depends on prompt and seed alone."""
    chance = random.Random(json.dumps([body["prompt"], body["seed"]]))
    k = body["n_probs"]
    positions = []
    for _ in range(min(tokens, body["n_predict"])):
        ids = chance.sample(range(3, VOCABULARY), k)
        weights = sorted((chance.random() for _ in range(k)), reverse=True)
        total = sum(weights) * 1.1
        top = [
            {"id": i, "token": f"t{i}", "bytes": [116], "logprob": math.log(w / total)}
            for i, w in zip(ids, weights, strict=True)
        ]
        realised = (
            top[0] if top else {"id": chance.randrange(3, VOCABULARY), "token": "t", "bytes": [], "logprob": -1.0}
        )
        positions.append({**realised, "top_logprobs": top})
    return {
        "content": "".join(f" t{p['id']}" for p in positions),
        "tokens": [p["id"] for p in positions],
        "tokens_evaluated": len(body["prompt"]),
        "stop_type": "limit",
        "model": "made-up",
        "completion_probabilities": positions if k else [],
    }


class TeacherServer:
    """Serves on a free loopback port in a thread of its own. `fault` names what goes wrong with an ask, or None."""

    def __init__(self, fault: Fault | None = None, *, latency: float = 0.0, tokens: int = 6) -> None:
        self.fault = fault or (lambda ask: None)
        self.latency = latency
        self.tokens = tokens
        self.asks: list[Ask] = []
        self.answered: Counter[tuple[tuple[int, ...], int]] = Counter()
        self.sent: dict[tuple[int, ...], bytes] = {}  # the last body of each prompt, good or not
        self.headers: list[Mapping[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.together = 0  # so many faults are done at once: the first ones wait for the last
        self._misbehaving = 0
        self.dead_until = 0.0
        self._attempts: Counter[tuple[tuple[int, ...], int]] = Counter()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes(web.route(how, path, self._alive(inner)) for how, path, inner in self.routes())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(asyncio.wait_for(runner.cleanup(), 5))
        left = asyncio.all_tasks(self._loop)  # those that stall
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def routes(self) -> list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]]:
        return [
            ("GET", "/health", self._health),
            ("GET", "/props", self._props),
            ("GET", "/v1/models", self._models),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/apply-template", self._template),
            ("POST", "/completion", self._completion),
        ]

    def _alive(self, inner: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            self.headers.append(dict(request.headers))
            if time.monotonic() < self.dead_until:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return await inner(request)

        return handler

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _props(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "default_generation_settings": {"n_ctx": 4096},
                "total_slots": 4,
                "model_path": "made-up.gguf",
                "chat_template": "{{ messages }}",
                "build_info": "b1-test",
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "made-up", "meta": {"n_vocab": VOCABULARY, "n_ctx_train": 4096}}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"tokens": tokens_of(body["content"])})

    async def _template(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({"prompt": "".join(f"<{m['role']}>{m['content']}" for m in body["messages"])})

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        body = self.asked(await request.json())
        if isinstance(body["prompt"], str):
            body["prompt"] = tokens_of(body["prompt"])
        if body["n_probs"] > LARGEST_K:
            return web.json_response({"error": {"code": 400, "message": "n_probs is too large"}}, status=400)
        name = (tuple(body["prompt"]), body["seed"])
        self._attempts[name] += 1
        ask = Ask(len(self.asks), body, self._attempts[name])
        self.asks.append(ask)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            fault = self.fault(ask)
            if fault is None:
                self.answered[name] += 1
                return self._json(ask, json.dumps(self.good(body)).encode())
            self._misbehaving += 1
            while self._misbehaving < self.together:
                await asyncio.sleep(0.005)
            return await self._misbehave(fault, request, ask)
        finally:
            self.in_flight -= 1

    def asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body in llama.cpp's words."""
        return body

    def good(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return completion(body, self.tokens)

    def _json(self, ask: Ask, text: bytes, **more: Any) -> web.Response:
        self.sent[ask.prompt] = text
        return web.Response(body=text, content_type="application/json", **more)

    async def _misbehave(self, fault: str, request: web.Request, ask: Ask) -> web.StreamResponse:
        if fault == "other-model":
            self.answered[(ask.prompt, ask.body["seed"])] += 1
            return web.json_response(completion({**ask.body, "seed": ask.body["seed"] + 1}, self.tokens))
        good = self.good(ask.body)
        if fault == "die":
            self.dead_until = time.monotonic() + 0.5
            assert request.transport is not None
            request.transport.abort()
        elif fault == "reset" or fault.startswith("truncate"):
            self._cut(fault, request, ask, json.dumps(good).encode())
        elif fault == "stall":
            await asyncio.sleep(3600)
        elif fault == "gzip-bomb":
            return self._json(ask, _bomb(), headers={"Content-Encoding": "gzip"})
        elif fault.startswith("http-"):
            return self._refuse(fault, ask)
        elif fault == "echo-key":
            message = f"you sent {request.headers['Authorization']}"
            return self._json(ask, json.dumps({"error": {"message": message}}).encode(), status=400)
        elif fault == "redirect":
            return web.Response(status=307, headers={"Location": "http://127.0.0.2:9/elsewhere"})
        else:
            return self._json(ask, self.malformed(fault)(good))
        return web.Response()

    def malformed(self, fault: str) -> Callable[[Any], bytes]:
        return MALFORMED[fault]

    def _cut(self, fault: str, request: web.Request, ask: Ask, text: bytes) -> None:
        """Part of an answer, up to a random byte of head or body; then the end, or a reset of the connection."""
        head, body = {
            "truncate-chunked": (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)),
            "truncate-unsized": (b"Connection: close", text),
        }.get(fault, (b"Content-Length: %d" % len(text), text))
        whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%s\r\n\r\n%s" % (head, body)
        assert request.transport is not None
        request.transport.write(whole[: random.Random(f"{ask.prompt} {ask.attempt}").randrange(len(whole))])
        if fault == "reset":
            lingering = request.transport.get_extra_info("socket")
            lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.close()

    def _refuse(self, fault: str, ask: Ask) -> web.Response:
        """`http-429`, `http-429-1` with a Retry-After in seconds, `http-429-date` with one as a date, `http-busy`."""
        _, status, *after = fault.split("-", 2)
        if status == "busy":
            status = str(random.Random(f"{ask.prompt} {ask.attempt}").choice(BUSY))
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if after == ["date"] else None
        headers = {"Retry-After": when or after[0]} if after else {}
        text = json.dumps({"error": {"code": int(status), "message": f"made-up {status}"}}).encode()
        return self._json(ask, text, status=int(status), headers=headers)


@cache
def _bomb() -> bytes:
    return gzip.compress(b" " * (1 << 28), 9)


def _text(good: Any) -> bytes:
    return json.dumps(good).encode()


def _wrong_type(good: Any) -> bytes:
    return _text(good | {"tokens": "five"})


def _wrong_length(good: Any) -> bytes:
    return _text(good | {"tokens": good["tokens"][:-1]})


def _out_of_vocabulary(good: Any) -> bytes:
    position = good["completion_probabilities"][1]
    position["top_logprobs"][0]["id"] = position["id"] = good["tokens"][1] = VOCABULARY + 5
    return _text(good)


def _mass_above_one(good: Any) -> bytes:
    for candidate in good["completion_probabilities"][1]["top_logprobs"]:
        candidate["logprob"] = -0.1
    return _text(good)


def _repeated_id(good: Any) -> bytes:
    top = good["completion_probabilities"][1]["top_logprobs"]
    top[1]["id"] = top[2]["id"]
    return _text(good)


def _speculative(good: Any) -> bytes:
    good["completion_probabilities"][1] |= {"logprob": 0.0, "top_logprobs": []}
    return _text(good)


def _colliding_strings(good: Any) -> bytes:
    top = good["completion_probabilities"][1]["top_logprobs"]
    top[1]["token"] = top[2]["token"]
    return _text(good)


def _last_logprob(text: str) -> Callable[[Any], bytes]:
    def change(good: Any) -> bytes:
        last = good["completion_probabilities"][1]["top_logprobs"][-1]
        return _text(good).replace(str(last["logprob"]).encode(), text.encode())

    return change


MALFORMED: dict[str, Callable[[Any], bytes]] = {
    "broken-json": lambda good: _text(good)[:-20],
    "duplicate-key": lambda good: _text(good)[:-1] + b', "tokens": [5]}',  # the last one counts, of another length
    "huge": lambda good: _text(good | {"content": "x" * 5_000_000}),
    "large": lambda good: _text(good | {"content": "x" * 500_000}),
    "wrong-type": _wrong_type,
    "wrong-length": _wrong_length,
    "out-of-vocabulary": _out_of_vocabulary,
    "mass-above-one": _mass_above_one,
    "repeated-id": _repeated_id,
    "speculative": _speculative,
    "colliding-strings": _colliding_strings,
    "nan": _last_logprob("NaN"),
    "null": _last_logprob("null"),
    "sentinel": _last_logprob("-9999.0"),
    "lowest-float": _last_logprob("-3.4028234663852886e+38"),
}
