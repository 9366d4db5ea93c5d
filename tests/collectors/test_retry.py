import asyncio
import json
from datetime import UTC, datetime

import pytest

from collectors.errors import EndpointStopped, Rejected, ServerBusy, TransportError
from collectors.http import Response
from collectors.retry import allowed_per_minute, attempts, check_status, error_text, exhausted_for, retry_after
from tests.collectors.virtual_time import run

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


def answer(status: int, message: str = "no", headers: dict[str, str] | None = None) -> Response:
    return Response(status, headers or {}, json.dumps({"error": {"message": message}}).encode(), 0.1)


@pytest.mark.parametrize("status", [429, 408, 409, 500, 502, 503, 504, 529, 301, 307])
def test_busy_servers_are_asked_again(status: int) -> None:
    with pytest.raises(ServerBusy, match=str(status)):
        check_status(answer(status))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusals_of_the_client_stop_the_endpoint(status: int) -> None:
    with pytest.raises(EndpointStopped, match=r"api_key_env|operator|base_url"):
        check_status(answer(status))


@pytest.mark.parametrize("status", [400, 413, 422, 405])
def test_other_client_errors_reject_the_row_with_the_body(status: int) -> None:
    with pytest.raises(Rejected) as caught:
        check_status(answer(status, "temperature must be positive"))
    assert caught.value.code == f"http_{status}"
    assert b"temperature" in caught.value.raw
    assert caught.value.detail == "temperature must be positive"


def test_a_prompt_over_the_context_has_its_own_reason() -> None:
    with pytest.raises(Rejected) as caught:
        check_status(answer(400, "This model's maximum context length is 512 tokens."))
    assert caught.value.code == "context_overflow"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Tue, 24 Nov 2026 12:01:30 GMT"}, 90),
        ({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "86400"}, 3600),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3600), ("30", 30), (str(int(NOW.timestamp()) + 40), 40),
     ("2026-11-24T12:00:10Z", 10), ("later", None)],
)  # fmt: skip
def test_an_exhausted_allowance_names_when_it_returns(reset: str, seconds: float | None) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": reset}
    assert exhausted_for(headers, NOW) == (None if seconds is None else pytest.approx(seconds))
    assert exhausted_for(headers | {"x-ratelimit-remaining-requests": "3"}, NOW) is None


def test_anthropic_headers_are_understood_too() -> None:
    headers = {
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2026-11-24T12:00:25Z",
        "anthropic-ratelimit-requests-remaining": "5",
    }
    assert exhausted_for(headers, NOW) == 25


def test_a_daily_limit_is_not_taken_for_one_by_the_minute() -> None:
    assert allowed_per_minute({"x-ratelimit-limit-requests": "60", "x-ratelimit-reset-requests": "1s"}) == 60
    assert allowed_per_minute({"x-ratelimit-limit-requests": "14400", "x-ratelimit-reset-requests": "6m"}) is None
    assert allowed_per_minute({"x-ratelimit-limit-requests": "many"}) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "a\\u001b[31m b"}}', "a [31m b"),
        (b'{"detail": [{"msg": "x.", "loc": 1}]}', "x"),
        (b"plain\ntext", "plain text"),
        (b"", "no detail"),
        (b"[]", "no detail"),
        (b"\xff\xfe", "��"),
        (b'{"error": "' + b"y" * 9999 + b'"}', "y" * 300),
    ],
)
def test_an_error_body_becomes_one_short_printable_line(body: bytes, text: str) -> None:
    assert error_text(body) == text


def test_tries_are_counted_and_the_last_error_is_raised() -> None:
    tried = []

    async def story() -> None:
        async for attempt in attempts(4):
            with attempt:
                tried.append(asyncio.get_running_loop().time())
                raise TransportError(f"try {len(tried)}")

    with pytest.raises(TransportError, match="try 4"):
        run(story())
    assert len(tried) == 4


def test_what_asking_again_cannot_mend_is_asked_once() -> None:
    tried = []

    async def story() -> None:
        async for attempt in attempts(4):
            with attempt:
                tried.append(1)
                raise Rejected("http_400", "no")

    with pytest.raises(Rejected):
        run(story())
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"code": 429, "message": "upstream is full"}}, ServerBusy),
        ({"error": {"code": 502, "message": "upstream died"}, "user_id": "u"}, ServerBusy),
        ({"object": "error", "message": "too long", "code": 400}, Rejected),
        ({"error": {"code": 401, "message": "no"}}, EndpointStopped),
    ],
)
def test_an_error_that_a_gateway_sends_as_a_200_counts_as_what_it_says(body: object, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        check_status(Response(200, {}, json.dumps(body).encode(), 0.1))


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": null, "choices": []}',
        b'{"error": {"code": "invalid", "message": "x"}}',
        b'{"error": {"code": 200}}',
        b'{"error"',
        b'{"error": ' + b"[" * 9000,
        b"[]",
    ],
)
def test_what_else_comes_as_a_200_is_the_readers_affair(body: bytes) -> None:
    check_status(Response(200, {}, body, 0.1))


def test_a_page_where_an_answer_is_due_is_asked_for_again() -> None:
    with pytest.raises(ServerBusy, match="proxy"):
        check_status(Response(200, {"content-type": "text/html; charset=utf-8"}, b"<html>log in</html>", 0.1))


@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 20_000])
def test_an_error_body_of_any_depth_is_no_error_of_ours(body: bytes) -> None:
    assert error_text(body)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(NOW.timestamp() * 1000) + 40_000)}, 40),
        ({"x-rate-limit-remaining": "0", "x-rate-limit-reset": "5"}, 5),
        ({"x-ratelimit-requests-remaining": "0", "x-ratelimit-requests-reset": "7.66s"}, 7.66),
        ({"ratelimit-remaining": "0, 0;w=60", "ratelimit-reset": "9"}, 9),
        ({"ratelimit": '"default";r=0;t=30'}, 30),
        ({"ratelimit": '"burst";r=4;t=2, "day";r=0;t=90'}, 90),
        ({"ratelimit": "limit=100, remaining=0, reset=8"}, 8),
        ({"ratelimit": '"default";r=3;t=30'}, None),
        ({"ratelimit": "limit=100, remaining=1, reset=8"}, None),
        ({"ratelimit": ";;=,;r=0"}, None),
    ],
)
def test_an_exhausted_allowance_is_understood_in_several_spellings(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert exhausted_for(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_a_refusal_without_retry_after_waits_for_the_reset_that_it_names() -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "21s"}
    with pytest.raises(ServerBusy) as caught:
        check_status(answer(429, headers=headers), now=NOW)
    assert caught.value.retry_after == 21
    with pytest.raises(ServerBusy) as caught:
        check_status(answer(429, headers=headers | {"retry-after": "3"}), now=NOW)
    assert caught.value.retry_after == 3
