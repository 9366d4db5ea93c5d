import asyncio
import gzip
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
from aiohttp import web

from collectors.errors import Rejected, TransportError
from collectors.http import FakeSender, HttpSender, Request, Response
from collectors.origin import check_base_url, forbidden_address
from tests.collectors.servers import TeacherServer

BODY = b'{"prompt": [2, 5, 6], "seed": 1, "n_probs": 3, "n_predict": 4}'
ASK = Request("POST", "/completion", BODY)


def run(work: Coroutine[Any, Any, Response]) -> Response:
    return asyncio.run(asyncio.wait_for(work, 30))


async def send(server: TeacherServer, **settings: Any) -> Response:
    async with HttpSender(server.url, **settings) as sender:
        return await sender.send(ASK)


def test_a_whole_answer_comes_back_with_lower_case_headers() -> None:
    with TeacherServer() as server:
        response = run(send(server))
    assert response.status == 200
    assert response.headers["content-type"].startswith("application/json")
    assert b"completion_probabilities" in response.body
    assert 0 < response.seconds < 30


@pytest.mark.parametrize("fault", ["reset", "truncate", "die"])
def test_what_breaks_off_is_a_transport_error(fault: str) -> None:
    with TeacherServer(lambda ask: fault) as server, pytest.raises(TransportError) as caught:
        run(send(server))
    assert server.url in str(caught.value)


def test_a_stalled_server_is_left_after_the_timeout() -> None:
    with TeacherServer(lambda ask: "stall") as server, pytest.raises(TransportError, match=r"within 0\.3 s"):
        run(send(server, timeout_seconds=0.3))


def test_nothing_listening_is_a_transport_error() -> None:
    async def story() -> Response:
        async with HttpSender("http://127.0.0.1:9") as sender:
            return await sender.send(ASK)

    with pytest.raises(TransportError, match=r"127\.0\.0\.1:9"):
        run(story())


def test_a_small_body_that_unpacks_to_a_huge_one_is_cut_off() -> None:
    with TeacherServer(lambda ask: "gzip-bomb") as server, pytest.raises(Rejected) as caught:
        run(send(server, max_body_bytes=1_000_000))
    assert caught.value.code == "body_too_large"
    assert 0 < len(caught.value.raw) <= 65536


def test_a_body_over_the_bound_is_cut_off_also_without_packing() -> None:
    with TeacherServer(lambda ask: "huge") as server, pytest.raises(Rejected, match="body_too_large"):
        run(send(server, max_body_bytes=1_000_000))


class _Odd:
    """A server of one answer."""

    def __init__(self, status: int, body: bytes, encoding: str) -> None:
        self._status, self._body, self._encoding = status, body, encoding

    async def __aenter__(self) -> str:
        app = web.Application()
        app.add_routes([web.post("/completion", self._respond)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _respond(self, request: web.Request) -> web.Response:
        return web.Response(status=self._status, body=self._body, headers={"Content-Encoding": self._encoding})


def odd(status: int, body: bytes, encoding: str) -> Response:
    async def story() -> Response:
        async with _Odd(status, body, encoding) as url, HttpSender(url, max_body_bytes=1_000_000) as sender:
            return await sender.send(ASK)

    return run(story())


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"packed", "br"), (b"not packed", "gzip"), (gzip.compress(b"x" * 9_000_000), "gzip"), (b"y" * 9_000_000, "br")],
)
def test_the_body_of_a_refusal_does_not_hide_it(body: bytes, encoding: str) -> None:
    response = odd(503, body, encoding)
    assert response.status == 503
    assert 0 < len(response.body) <= 400_000


def test_an_answer_in_a_packing_that_was_not_asked_for_is_kept_as_it_came() -> None:
    with pytest.raises(Rejected) as caught:
        odd(200, b"\x0b\x02\x80paid for", "br")
    assert (caught.value.code, caught.value.raw, caught.value.status) == (
        "content_encoding",
        b"\x0b\x02\x80paid for",
        200,
    )


def test_a_packed_answer_may_have_several_members_and_nothing_else_behind_it() -> None:
    assert odd(200, gzip.compress(b'{"a": ') + gzip.compress(b"1}"), "gzip").body == b'{"a": 1}'
    with pytest.raises(TransportError, match="damaged"):
        odd(200, gzip.compress(b"{}") + b"garbage", "gzip")
    with pytest.raises(Rejected, match="body_too_large"):
        odd(200, gzip.compress(b"x" * 600_000) * 2, "gzip")


def test_redirects_are_not_followed_and_the_key_stays_at_its_origin() -> None:
    with TeacherServer(lambda ask: "redirect") as server:
        assert run(send(server, api_key="canary")).status == 307


def test_the_key_is_sent_as_a_bearer_token_and_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with TeacherServer() as server:
        run(send(server, api_key="canary-key"))
        assert server.headers[0]["Authorization"] == "Bearer canary-key"
    assert "canary-key" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("httpx") and record.levelno < 30]


def test_more_requests_than_connections_wait_and_do_not_fail() -> None:
    async def story() -> list[Response]:
        with TeacherServer(latency=0.05) as server:
            async with HttpSender(server.url, connections=4) as sender:
                return await asyncio.gather(*(sender.send(ASK) for _ in range(16)))

    assert [response.status for response in asyncio.run(story())] == [200] * 16


def test_a_name_that_leads_to_a_metadata_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    async def resolve(self: Any, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        return [{"hostname": host, "host": "169.254.169.254", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)

    async def story() -> Response:
        async with HttpSender("http://teacher.example") as sender:
            return await sender.send(ASK)

    with pytest.raises(TransportError, match="metadata"):
        run(story())


def test_numbers_that_hide_an_address_are_resolved_and_refused() -> None:
    async def story() -> Response:
        async with HttpSender("http://2852039166") as sender:  # 169.254.169.254 as one number
            return await sender.send(ASK)

    with pytest.raises(TransportError):
        run(story())


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example", "a.example", "http://", "http://user:pw@a.example", "http://a.example/?key=1",
     "http://169.254.169.254/latest", "http://[fe80::1]:80", "http://metadata.google.internal", "http://a.example#x",
     "http://[::ffff:169.254.169.254]", "http://100.100.100.200"],
)  # fmt: skip
def test_addresses_that_no_teacher_has_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        check_base_url(url)


def test_the_root_of_a_server_is_what_is_kept() -> None:
    assert check_base_url("https://api.example/openai/v1/") == "https://api.example/openai"
    assert check_base_url("http://10.0.0.7:8000") == "http://10.0.0.7:8000"
    assert not forbidden_address("192.168.1.1")


def test_the_fake_sender_answers_by_its_handler() -> None:
    sender = FakeSender(lambda request: Response(200, {}, request.body or b"", 0.0))
    assert asyncio.run(sender.send(ASK)).body == BODY
    assert sender.requests == [ASK]
