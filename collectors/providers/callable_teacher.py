"""A Python function as a teacher for mode `classify`: any classifier that maps texts to probabilities of labels.

The function is code of whoever wrote the run file, and importing it runs that file's code with the rights of the
command: start runs only from folders that you trust.
"""

import hashlib
import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collectors.errors import EndpointStopped, Rejected
from collectors.providers.in_process import About, Question, Told, told_labels

Function = Callable[[Sequence[str], Sequence[str]], Any]
"""Texts and labels → probabilities [texts, labels]: a list of lists, or what NumPy makes an array of."""


class CallableTeacher:
    """A function as a teacher. Its rows are normalised over the labels.

    name: what the card calls it; version: of its code.
    """

    def __init__(self, function: Function, *, name: str, version: str = "") -> None:
        self._function = function
        self._name = name
        self._version = version

    def answer(self, questions: Sequence[Question]) -> list[Told | Rejected]:
        """All texts in one call, since all questions of a run have the same labels."""
        if any(question.mode != "classify" or question.prompt is None for question in questions):
            detail = "a function classifies texts: use ask.mode = 'classify' and prompts, not messages or token ids"
            return [Rejected("mode_not_possible", detail)] * len(questions)
        texts = [question.prompt or "" for question in questions]
        found = np.asarray(self._function(texts, questions[0].labels), dtype=np.float64)
        if found.shape != (len(texts), len(questions[0].labels)):
            detail = f"the function gave an array {found.shape} for {len(texts)} texts and its labels"
            return [Rejected("length_mismatch", detail)] * len(questions)
        return [_classified(question, row) for question, row in zip(questions, found, strict=True)]

    def about(self) -> About:
        """The function's name and the digest of its code; it has no vocabulary."""
        return About(engine="python", version=self._version, model=self._name, vocabulary=0)


def _classified(question: Question, row: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Told | Rejected:
    if not np.isfinite(row).all() or (row < 0).any() or row.sum() <= 0:
        return Rejected("no_probabilities", "the function gave what are no probabilities")
    with np.errstate(divide="ignore"):
        return told_labels(question, None, np.log(row / row.sum()))


def load_callable(spec: str) -> CallableTeacher:
    """The function of `/folder/module.py:name`, whose file may import what lies beside it.

    Raises EndpointStopped when the file is missing, fails while it is imported, or has no such function.
    """
    path, name = Path(spec.rpartition(":")[0]), spec.rpartition(":")[2]
    try:
        source = path.read_bytes()
    except OSError as error:
        raise EndpointStopped(
            f"The teacher {spec} cannot be read ({error.strerror}): set endpoint.callable."
        ) from error
    function = getattr(_imported(path, spec), name, None)
    if not callable(function):
        raise EndpointStopped(f"{path} has no function {name!r}: set endpoint.callable to module:function.")
    version = f"{platform.python_version()} sha256 {hashlib.sha256(source).hexdigest()[:16]}"
    return CallableTeacher(function, name=f"{path.stem}:{name}", version=version)


def _imported(path: Path, spec: str) -> Any:
    loader = importlib.util.spec_from_file_location(path.stem, path)
    assert loader is not None and loader.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(loader)
    sys.path.append(str(path.parent))  # behind all others: nothing installed is replaced by a file of that folder
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        raise EndpointStopped(
            f"The teacher {spec} cannot be imported: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    return module
