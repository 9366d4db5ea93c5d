"""Questions to a teacher in this process, behind the same seam as the network: `send` a request, get a response.

What waits together is answered together, in one thread, so that the loop stays free and batches are dense.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from collectors.errors import EndpointStopped, Rejected
from collectors.http import Request, Response
from collectors.providers.in_process import About, Question, Told

_FAILED = "model_failed"
_QUESTION = msgspec.json.Decoder(Question)


class Teacher(Protocol):
    """A model that answers questions, several at once; a question that it cannot answer gets a Rejected."""

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question, in their order."""

    def about(self) -> About:
        """What it is."""


class InProcessSender:
    """Sends to a teacher in this process. batch: the most questions that are answered together."""

    def __init__(self, teacher: Teacher, *, batch: int = 16) -> None:
        self.sent = 0
        self._teacher = teacher
        self._batch = batch
        self._waiting: list[tuple[Question, asyncio.Future[Response]]] = []
        self._answering: asyncio.Task[None] | None = None
        self._works = False

    async def send(self, request: Request) -> Response:
        """Answer one request: `/about`, or `/ask` with a question; a question without an answer is a 422.

        Raises EndpointStopped when the teacher fails on all that it was asked first: then it is not the questions.
        """
        self.sent += 1
        if request.path == "/about":
            return _response(200, msgspec.json.encode(self._teacher.about()))
        if request.path != "/ask" or request.body is None:
            return _response(404, b'{"error": "there is no such path"}')
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting.append((_QUESTION.decode(request.body), answer))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_all())
        return await answer

    async def aclose(self) -> None:
        """Wait for what is being computed."""
        if self._answering is not None:
            await self._answering

    async def _answer_all(self) -> None:
        await asyncio.sleep(0)  # let those who ask in the same turn of the loop in
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            told = await asyncio.to_thread(self._told, [question for question, _ in batch])
            stopped = None if self._works else _fails_always(told)
            self._works = self._works or stopped is None
            for (_, answer), one in zip(batch, told, strict=True):
                if answer.cancelled():
                    continue
                if stopped is not None:
                    answer.set_exception(stopped)
                elif isinstance(one, Rejected):
                    answer.set_result(_response(422, msgspec.json.encode({"error": str(one)})))
                else:
                    answer.set_result(_response(200, msgspec.json.encode(one)))

    def _told(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """Whatever a model raises is the fault of one batch, and of one question where each is asked by itself."""
        try:
            return self._teacher.answer(questions)
        except Exception as error:
            if len(questions) > 1:
                return [answer for question in questions for answer in self._told([question])]
            return [Rejected(_FAILED, f"{type(error).__name__}: {error}")]


def _fails_always(told: Sequence[Told | Rejected]) -> EndpointStopped | None:
    failed = [one for one in told if isinstance(one, Rejected) and one.code == _FAILED]
    if len(failed) < len(told):
        return None
    return EndpointStopped(f"The teacher fails on every question, so nothing was stored: {failed[0].detail}")


def _response(status: int, body: bytes) -> Response:
    return Response(status=status, headers={}, body=body, seconds=0.0)
