"""A server that answers at once with the same 64 tokens × top-20 (about 120 KB), so that only the client is measured.

Written on asyncio's protocols: a web framework would take more of the machine than the client under test. Other
requests (a probe's) are answered by the made-up teacher of the tests.
"""

import asyncio
import json
import sys
import time
from typing import Any

from tests.collectors.servers import completion, tokens_of

TOKENS, TOP_K = 64, 20
PROMPT = list(range(10, 26))


def labels() -> dict[str, Any]:
    """An answer as llama.cpp writes it: each candidate with its string and its bytes."""
    answer = completion({"prompt": PROMPT, "seed": 1, "n_probs": TOP_K, "n_predict": TOKENS}, TOKENS)
    for position in answer["completion_probabilities"]:
        for candidate in (position, *position["top_logprobs"]):
            candidate["token"] = f" token{candidate['id']}"
            candidate["bytes"] = list(candidate["token"].encode())
    return answer


def chat() -> dict[str, Any]:
    """The same labels in OpenAI's chat shape, for collectors that know no other."""
    positions = labels()["completion_probabilities"]
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0, "finish_reason": "stop", "logprobs": {"content": positions},
                "message": {"role": "assistant", "content": "".join(position["token"] for position in positions)},
            }
        ],
        "usage": {"prompt_tokens": len(PROMPT), "completion_tokens": TOKENS, "total_tokens": len(PROMPT) + TOKENS},
    }  # fmt: skip


class Server(asyncio.Protocol):
    """One connection: requests one after the other."""

    body = json.dumps(labels()).encode()
    chat = json.dumps(chat()).encode()
    latency = 0.0
    times: list[float] = []  # noqa: RUF012 - of all connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._buffer[:end])
            start = head.lower().find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n")[0]) if start >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        is_chat = path == "/v1/chat/completions" and b"top_logprobs" in body
        if is_chat or (path == "/completion" and b'"n_probs":20,' in body and b'"n_predict":64,' in body):
            self.times.append(time.time())
            whole = self.chat if is_chat else self.body
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self._send, whole)
            else:
                self._send(whole)
        else:
            self._send(json.dumps(self._other(path, body)).encode())

    def _other(self, path: str, body: bytes) -> Any:
        if path == "/times":
            times = list(self.times)
            self.times.clear()
            return times
        asked = json.loads(body) if body else {}
        if path == "/completion":
            ids = asked["prompt"] if isinstance(asked["prompt"], list) else tokens_of(asked["prompt"])
            return completion({**asked, "prompt": ids, "n_probs": min(asked["n_probs"], 64)})
        if path == "/tokenize":
            return {"tokens": tokens_of(asked["content"])}
        return {"default_generation_settings": {"n_ctx": 4096}, "chat_template": "{{ messages }}", "status": "ok"}

    def _send(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


async def serve(latency: float) -> None:
    """Say the port on stdout, then serve until the parent goes."""
    Server.latency = latency
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0))
