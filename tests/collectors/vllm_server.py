"""A made-up vLLM server, completions shape with ids: for the wrongs that only this protocol knows."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from tests.collectors.servers import TeacherServer, completion


class VllmServer(TeacherServer):
    """As TeacherServer; the realised token is always among the candidates, as a k+1st where it is none of the best."""

    def routes(self) -> list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]]:
        return [
            ("GET", "/health", self._health),
            ("GET", "/version", self._version),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/completions", self._completion),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.25-test"})

    def asked(self, body: dict[str, Any]) -> dict[str, Any]:
        return body | {"n_probs": body.get("logprobs") or 0, "n_predict": body["max_tokens"]}

    def good(self, body: Mapping[str, Any]) -> dict[str, Any]:
        found = completion(body, self.tokens)
        positions = found["completion_probabilities"]
        tops = [{_name(one): one["logprob"] for one in position["top_logprobs"]} for position in positions]
        choice = {
            "index": 0,
            "text": found["content"],
            "finish_reason": "length",
            "logprobs": {
                "tokens": [_name(position) for position in positions],
                "token_logprobs": [position["logprob"] for position in positions],
                "top_logprobs": tops,
            },
            "token_ids": found["tokens"],
            "prompt_token_ids": list(body["prompt"]),
        }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(found["tokens"])}
        return {"id": "cmpl-1", "model": "made-up", "choices": [choice], "usage": usage}

    def malformed(self, fault: str) -> Callable[[Any], bytes]:
        return _MALFORMED[fault]


def _name(position: Mapping[str, Any]) -> str:
    return f"token_id:{position['id']}"


def _extra_entry(good: Any) -> bytes:
    """The sampled token of position 1 is none of its k best."""
    choice = good["choices"][0]
    choice["token_ids"][1] = 1
    choice["logprobs"]["tokens"][1] = "token_id:1"
    choice["logprobs"]["token_logprobs"][1] = -30.0
    choice["logprobs"]["top_logprobs"][1]["token_id:1"] = -30.0
    return json.dumps(good).encode()


def _by_string(good: Any) -> bytes:
    """Candidates by their strings, two of which are the same: one of them is lost."""
    logprobs = good["choices"][0]["logprobs"]
    logprobs["tokens"] = ["t"] * len(logprobs["tokens"])
    logprobs["top_logprobs"] = [
        {f"t{min(place, 3)}": logprob for place, logprob in enumerate(top.values())} for top in logprobs["top_logprobs"]
    ]
    return json.dumps(good).encode()


def _colliding(good: Any) -> bytes:
    """The same name twice in one object: whoever reads it keeps one."""
    first, second, *_ = good["choices"][0]["logprobs"]["top_logprobs"][1]
    return json.dumps(good).encode().replace(f'"{second}"'.encode(), f'"{first}"'.encode())


def _short(good: Any) -> bytes:
    good["choices"][0]["token_ids"].pop()
    return json.dumps(good).encode()


def _last(value: str) -> Callable[[Any], bytes]:
    def change(good: Any) -> bytes:
        last = list(good["choices"][0]["logprobs"]["top_logprobs"][1].values())[-1]
        return json.dumps(good).encode().replace(str(last).encode(), value.encode())

    return change


_MALFORMED: dict[str, Callable[[Any], bytes]] = {
    "k+1": _extra_entry,
    "sentinel": _last("-9999.0"),
    "nan": _last("NaN"),
    "candidates by string": _by_string,
    "colliding strings": _colliding,
    "wrong-length": _short,
    "no labels": lambda good: json.dumps(good | {"choices": [good["choices"][0] | {"logprobs": None}]}).encode(),
    "two choices": lambda good: json.dumps(good | {"choices": good["choices"] * 2}).encode(),
}
