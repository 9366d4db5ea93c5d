"""What an HTTP answer means for its row and for its endpoint, and how often a request may be tried.

Busy (429, 408, 409, 5xx) is worth asking again; 401, 403 and 404 stop the endpoint; any other 4xx rejects the row. The
waits between tries live in the endpoint's limit, where all tasks share them; here is only the spread of one row.
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from collectors.errors import EndpointStopped, Rejected, ServerBusy, Transient
from collectors.http import Response

OVERLOAD = frozenset({429, 503, 529})
_BUSY = frozenset({408, 409, 425, 429})
_STOPPING = frozenset({401, 403, 404})
# Nobody waits for longer on one header: the endpoint is asked again after an hour, whatever it said.
_LONGEST_WAIT_SECONDS = 3600.0
# An error that came as a 200 says so at its beginning, and is short.
_ERROR_WITHIN = 64
_LONGEST_ERROR = 65_536
_MILLISECONDS = 1e11  # a Unix time above it (the year 5138) is one in milliseconds
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Words by which vLLM, SGLang, llama.cpp and OpenAI say that prompt and answer do not fit the context.
_CONTEXT = re.compile(r"context (length|size|window)|maximum context|too (long|many tokens)|exceed_context", re.I)


def attempts(limit: int) -> AsyncRetrying:
    """At most `limit` tries of one request, again only after a transient error, which is raised at the end."""
    return AsyncRetrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(limit),
        wait=wait_random_exponential(multiplier=0.25, max=10.0),
        reraise=True,
    )


def check_status(response: Response, *, now: datetime | None = None) -> None:
    """Return for a 200 with an answer; raise ServerBusy, EndpointStopped or Rejected for everything else."""
    status = _status(response)
    if status == 200:
        return
    detail = error_text(response.body)
    if status in _BUSY or status >= 500:
        now = now or datetime.now(UTC)
        wait = retry_after(response.headers, now)
        wait = exhausted_for(response.headers, now) if wait is None else wait
        raise ServerBusy(f"The endpoint answers {status}: {detail}.", status=status, retry_after=wait)
    if 300 <= status < 400:
        raise ServerBusy(f"The endpoint answers {status}, a redirect, which is not followed: set base_url to the "
                         "address itself.", status=status)  # fmt: skip
    if status in _STOPPING:
        raise EndpointStopped(_STOP_TEXT[status].format(detail=detail))
    code = "context_overflow" if _CONTEXT.search(detail) else f"http_{status}"
    raise Rejected(code, detail, raw=response.body, status=status)


def _status(response: Response) -> int:
    """The status, or the one that gateways put into the error that they send as a 200.

    Raises ServerBusy for a page: a login, or the apology of a proxy, of which the teacher knows nothing.
    """
    if response.status != 200:
        return response.status
    if response.headers.get("content-type", "").strip().lower().startswith("text/html"):
        raise ServerBusy(
            "The endpoint answers with a page where JSON is due: a proxy stands before it; set base_url to the server.",
            status=200,
        )
    if b'"error"' not in response.body[:_ERROR_WITHIN] or len(response.body) > _LONGEST_ERROR:
        return 200
    try:
        found = json.loads(response.body)
    except (ValueError, RecursionError):
        return 200
    if not isinstance(found, dict) or "choices" in found:
        return 200
    inner = found.get("error")
    code = inner.get("code") if isinstance(inner, dict) else found.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 200


_STOP_TEXT = {
    401: "The endpoint does not accept the key (401: {detail}): set the variable that api_key_env names.",
    403: "The endpoint forbids this request (403: {detail}): ask its operator for access to the model.",
    404: "The endpoint does not know the path or the model (404: {detail}): compare base_url and served_model with it.",
}


def error_text(body: bytes) -> str:
    """The sentence inside an error body, on one line and at most 300 characters long."""
    try:
        found = json.loads(body[:65536])
    except (ValueError, RecursionError):
        found = body[:2048].decode("utf-8", "replace")
    while isinstance(found, dict | list):
        if isinstance(found, list):
            found = found[0] if found else "no detail"
        else:
            found = next((found[name] for name in ("error", "message", "detail", "msg") if name in found), "no detail")
    text = "".join(letter if letter.isprintable() else " " for letter in str(found))
    return " ".join(text.split())[:300].rstrip(".") or "no detail"


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as an HTTP date."""
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return min(_LONGEST_WAIT_SECONDS, milliseconds / 1000)
    text = headers.get("retry-after", "").strip()
    seconds = _number(text)
    if seconds is None and text:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
    return None if seconds is None else min(_LONGEST_WAIT_SECONDS, seconds)


def exhausted_for(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until an allowance that is used up returns, by the rate-limit headers of OpenAI, Anthropic and others:
    pairs of `…-remaining…` and `…-reset…`, or the one field of the IETF's drafts."""
    waits = []
    for name, value in headers.items():
        if "ratelimit" not in name.replace("-", ""):
            continue
        reset: str | None = None
        if "remaining" in name and _number(value.partition(",")[0]) == 0:
            reset = headers.get(name.replace("remaining", "reset"))
        elif name == "ratelimit":
            reset = _ietf_reset(value)
        if reset is not None and (wait := _reset(reset, now)) is not None:
            waits.append(min(_LONGEST_WAIT_SECONDS, wait))
    return max(waits, default=None)


def _ietf_reset(text: str) -> str | None:
    """30 of `"default";r=0;t=30`, and of `limit=100, remaining=0, reset=30`; None where some is left."""
    for policy in text.split(",") if ";" in text else [text.replace(",", ";")]:
        words = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in policy.split(";"))}
        if _number(words.get("r", words.get("remaining", ""))) == 0:
            return words.get("t", words.get("reset"))
    return None


def allowed_per_minute(headers: Mapping[str, str]) -> float | None:
    """The requests per minute that the server says it allows (`x-ratelimit-limit-requests`, a limit by the minute)."""
    limit = _number(headers.get("x-ratelimit-limit-requests", ""))
    return limit if limit is not None and limit >= 1 and _is_by_minute(headers) else None


def _is_by_minute(headers: Mapping[str, str]) -> bool:
    # A daily allowance has the same header; OpenAI's by-the-minute ones refill one request within a minute.
    reset = _reset(headers.get("x-ratelimit-reset-requests", ""), datetime.now(UTC))
    return reset is not None and reset <= 60.0


def _reset(text: str, now: datetime) -> float | None:
    """A reset header as seconds from now: `6m0s`, `120ms`, `1.5`, a Unix time (in s or ms), or an RFC 3339 date."""
    text = text.strip()
    number = _number(text)
    if number is not None:
        at = number / 1000 if number > _MILLISECONDS else number
        return max(0.0, at - now.timestamp()) if number > 1e9 else number
    parts = _DURATION.findall(text)
    if parts and "".join(value + unit for value, unit in parts) == text:
        return sum(float(value) * _SECONDS[unit] for value, unit in parts)
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
