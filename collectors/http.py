"""The one seam to the network: a request goes in, a whole response or an error of ours comes out.

httpx with the aiohttp transport: plain httpx costs five to twenty times the CPU per request because its pool scans
every connection. Bodies are read raw and unpacked here, within a bound: a small response cannot fill the memory.
"""

import asyncio
import errno
import json
import logging
import socket
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import AiohttpResponseStream

from collectors.errors import Rejected, TransportError
from collectors.origin import forbidden_address

# Scoring 32k tokens at top-20 is 48 MB of JSON at 1.5 KB a token, 4,096 tokens at top-64 are 20 MB.
MAX_BODY_BYTES = 128 * 1024 * 1024
_HEAD_BYTES = 64 * 1024
_BUFFER_BYTES = 256 * 1024

# At the default of 16 KiB a body of 120 KB makes eight trips through four layers.
AiohttpResponseStream.CHUNK_SIZE = 256 * 1024

# httpx logs each address at INFO, and with it any key that a server wants in its query string.
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Request:
    """What to send: `path` begins with `/` and is relative to the endpoint's root; `body` is JSON."""

    method: str
    path: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response: header names in lower case, `body` unpacked, `seconds` from sending to the last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Sender(Protocol):
    """Sends one request; `sent` counts them. Raises TransportError when no whole response arrived."""

    sent: int

    async def send(self, request: Request) -> Response: ...


class FakeSender:
    """A sender without a network: `handler` answers each request. For tests, and for trying a provider by hand."""

    def __init__(self, handler: Callable[[Request], Response | Awaitable[Response]]) -> None:
        self.requests: list[Request] = []
        self.sent = 0
        self._handler = handler

    async def send(self, request: Request) -> Response:
        """Record the request and hand on the handler's answer."""
        self.requests.append(request)
        self.sent += 1
        answer = self._handler(request)
        return answer if isinstance(answer, Response) else await answer


class _GuardedResolver(AbstractResolver):
    """Resolves names as the system does and refuses those that lead to a link-local or metadata address."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if any(forbidden_address(one["host"]) for one in found):
            raise OSError(errno.EACCES, f"{host} leads to a link-local or metadata address, which is never asked")
        return found

    async def close(self) -> None:
        await self._inner.close()


class HttpSender:
    """Sends to one origin, with that origin's key, over kept connections.

    base_url: the server's root. api_key: sent as a Bearer token to this origin only; redirects are not followed.
    connections: the most that are open at once. The caller bounds its own concurrency, so that none waits for one here.
    timeout_seconds: the longest silence while waiting for a byte, and the longest a whole exchange may take.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        connections: int = 512,
        timeout_seconds: float = 300.0,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "potstill"}
        self._key = (api_key or "").encode()
        if self._key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._headers = httpx.Headers(headers)
        self._json_headers = httpx.Headers(headers | {"Content-Type": "application/json"})
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30.0)
        # The transport alone: what httpx.AsyncClient adds (redirects, cookies, proxies of the environment) is not
        # wanted here, and costs as much CPU as the transport.
        self._transport = AiohttpTransport(limits=limits, client=lambda: _session(connections))
        self.sent = 0
        self._root = base_url.rstrip("/")
        self._urls: dict[str, httpx.URL] = {}
        self._timeout = timeout_seconds
        self._extensions = {"timeout": {"connect": min(30.0, timeout_seconds), "read": timeout_seconds, "pool": None}}
        self._max_body_bytes = max_body_bytes

    async def send(self, request: Request) -> Response:
        """One exchange; raises TransportError, or Rejected when the body is larger than the bound."""
        self.sent += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._transport.handle_async_request(self._built(request))
                try:
                    body = await self._read(response)
                finally:
                    await response.aclose()
                self._check_whole(response, body)
        except TimeoutError as error:
            raise TransportError(f"No whole answer from {self._root} within {self._timeout:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            raise TransportError(f"The exchange with {self._root} failed: {_reason(error)}.") from error
        return Response(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=self._without_key(body),
            seconds=time.monotonic() - began,
        )

    def _built(self, request: Request) -> httpx.Request:
        url = self._urls.get(request.path)
        if url is None:
            url = self._urls[request.path] = httpx.URL(self._root + request.path)
        # By its stream httpx adds no headers of its own, for the price of a parse each: aiohttp adds Host and length.
        stream = httpx.ByteStream(request.body or b"")
        headers = self._headers if request.body is None else self._json_headers
        built = httpx.Request(request.method, url, headers=headers, stream=stream, extensions=self._extensions)
        built.read()
        return built

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, unpacked. Of anything but a 200 its beginning at most, as it came where it cannot be unpacked: what
        is wrong with the body of a refusal must not hide the refusal."""
        if response.status_code == 200:
            return await self._read_whole(response)
        head = bytearray()
        async for chunk in response.aiter_raw():
            head += chunk
            if len(head) > _HEAD_BYTES:
                break
        try:
            unpack = _unpacking(response)
            return bytes(head) if unpack is None else unpack.decompress(bytes(head), _HEAD_BYTES)
        except (KeyError, zlib.error):
            return bytes(head)

    async def _read_whole(self, response: httpx.Response) -> bytes:
        try:
            unpack = _unpacking(response)
        except KeyError as error:
            raw = await self._bounded(response, None)
            detail = f"the server packed its answer as {error.args[0]!r}, which was not asked for"
            raise Rejected("content_encoding", detail, raw=raw, status=200) from error
        return await self._bounded(response, unpack)

    async def _bounded(self, response: httpx.Response, unpack: "zlib._Decompress | None") -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in response.aiter_raw():
            rest = chunk
            while rest:
                part, rest = rest, b""
                if unpack is not None:
                    if unpack.eof:  # a packed body may have several members
                        unpack = _unpacking(response)
                        assert unpack is not None
                    part, rest = self._unpacked(unpack, part, self._max_body_bytes - size + 1)
                parts.append(part)
                size += len(part)
                if size > self._max_body_bytes:
                    head = self._without_key(b"".join(parts)[:_HEAD_BYTES])
                    detail = f"the body is larger than {self._max_body_bytes:,} bytes; its beginning is kept"
                    raise Rejected("body_too_large", detail, raw=head, status=response.status_code)
        if unpack is not None and not unpack.eof:
            raise TransportError(f"The packed answer of {self._root} ended early.")
        return b"".join(parts)

    def _unpacked(self, unpack: "zlib._Decompress", packed: bytes, most: int) -> tuple[bytes, bytes]:
        """At most so many bytes, and the packed ones behind the end of a member."""
        try:
            return unpack.decompress(packed, most), unpack.unused_data
        except zlib.error as error:
            raise TransportError(f"The packed answer of {self._root} is damaged.") from error

    def _without_key(self, body: bytes) -> bytes:
        """Bodies are kept, and some servers repeat in their errors what they were sent."""
        return body.replace(self._key, b"[key]") if self._key and self._key in body else body

    def _check_whole(self, response: httpx.Response, body: bytes) -> None:
        """A body that ends with its connection may have been cut anywhere: only its JSON tells whether it is whole."""
        headers = response.headers
        if response.status_code != 200 or "content-length" in headers or "transfer-encoding" in headers:
            return
        if "json" in headers.get("content-type", ""):
            try:
                json.loads(body)
            except (ValueError, RecursionError) as error:
                raise TransportError(f"The answer of {self._root} ended early, or is no JSON.") from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _unpacking(response: httpx.Response) -> "zlib._Decompress | None":
    """What unpacks the body, None for one as it is. Raises KeyError for a packing that was not asked for."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    bits = {"identity": None, "": None, "gzip": 47, "x-gzip": 47, "deflate": 15}[encoding]
    return None if bits is None else zlib.decompressobj(wbits=bits)


def _session(connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=connections, ssl=httpx.create_ssl_context(), resolver=_GuardedResolver(), keepalive_timeout=30.0
    )
    # A cookie of one answer must not shape the next; header lines of real servers stay far below 64 KiB. A usual body
    # fits into the buffer: at the default of 64 KiB reading would pause in the middle of each.
    session = aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), max_field_size=64 * 1024, read_bufsize=_BUFFER_BYTES
    )
    # By itself aiohttp sends a GET twice where a kept connection was cut: a budget must count what is sent. There is no
    # public switch; the budget's tests see it if this one goes.
    session._retry_connection = False
    return session


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text[:300] or error.__class__.__name__
