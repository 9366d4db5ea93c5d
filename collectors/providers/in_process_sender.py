"""Questions to a teacher in this process, behind the same seam as the network: `send` a request, get a response.

What waits together is answered together, in one thread, so that the loop stays free and batches are dense.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from collectors.errors import Rejected
from collectors.http import Request, Response
from collectors.providers.in_process import About, Question, Told, told_labels

_QUESTION = msgspec.json.Decoder(Question)


class Teacher(Protocol):
    """A model that answers questions, several at once; a question that it cannot answer gets a Rejected."""

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """One answer a question, in their order."""

    def about(self) -> About:
        """What it is."""


class CallableTeacher:
    """Any Python function as a teacher for mode `classify`: texts and labels → probabilities [texts, labels].

    Rows are normalised over the labels. name: what the cards call it.
    """

    def __init__(
        self, function: Callable[[Sequence[str], Sequence[str]], Sequence[Sequence[float]]], *, name: str
    ) -> None:
        self._function = function
        self._name = name

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """All texts in one call, since all questions of a run have the same labels."""
        if any(question.mode != "classify" or question.prompt is None for question in questions):
            return [Rejected("mode_not_possible", "a function classifies texts and does nothing else")] * len(questions)
        texts = [question.prompt or "" for question in questions]
        found = np.asarray(self._function(texts, questions[0].labels), dtype=np.float64)
        if found.shape != (len(texts), len(questions[0].labels)):
            detail = f"the function gave an array {found.shape} for {len(texts)} texts and its labels"
            return [Rejected("length_mismatch", detail)] * len(questions)
        return [_classified(question, row) for question, row in zip(questions, found, strict=True)]

    def about(self) -> About:
        """The function's name; it has no vocabulary."""
        return About(engine="python", version="", model=self._name, vocabulary=0)


def _classified(question: Question, row: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Told | Rejected:
    if not np.isfinite(row).all() or (row < 0).any() or row.sum() <= 0:
        return Rejected("no_probabilities", "the function gave what are no probabilities")
    with np.errstate(divide="ignore"):
        return told_labels(question, [], np.log(row / row.sum()))


class InProcessSender:
    """Sends to a teacher in this process. batch: the most questions that are answered together."""

    def __init__(self, teacher: Teacher, *, batch: int = 16) -> None:
        self._teacher = teacher
        self._batch = batch
        self._waiting: list[tuple[Question, asyncio.Future[Response]]] = []
        self._answering: asyncio.Task[None] | None = None

    async def send(self, request: Request) -> Response:
        """Answer one request: `/about`, or `/ask` with a question; a question without an answer is a 422."""
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
            try:
                told = await asyncio.to_thread(self._teacher.answer, [question for question, _ in batch])
            except Exception as error:  # whatever a model raises is one batch's fault, not the run's end
                told = [Rejected("model_failed", f"{type(error).__name__}: {error}")] * len(batch)
            for (_, answer), one in zip(batch, told, strict=True):
                if answer.cancelled():
                    continue
                if isinstance(one, Rejected):
                    answer.set_result(_response(422, msgspec.json.encode({"error": str(one)})))
                else:
                    answer.set_result(_response(200, msgspec.json.encode(one)))


def _response(status: int, body: bytes) -> Response:
    return Response(status=status, headers={}, body=body, seconds=0.0)
