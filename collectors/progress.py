"""How a run is going, for a person: a bar on a terminal, a plain line now and then elsewhere. Committed rows are what
counts, since only they are safe in the table; what is received but not yet committed is told apart."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_SECONDS = 10.0


@dataclass(slots=True)
class RunState:
    """What is known of a start of a run while it goes on. `planned` counts all of the run's requests, of which
    `done_before` were in the table when it started.
    """

    planned: int = 0
    done_before: int = 0
    received: int = 0
    committed: int = 0
    rejected: int = 0
    duplicates: int = 0
    tokens: int = 0
    usd: float = 0.0
    note: str = ""


class Watcher(Protocol):
    """Whoever wants to see a run go on; `update` is called some times a second."""

    def update(self, state: RunState) -> None: ...

    def say(self, line: str) -> None: ...


class Silent:
    """Shows nothing."""

    def update(self, state: RunState) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Console:
    """Progress on stderr. Use as a context manager; after it the last state stays on the screen."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._began = time.monotonic()
        self._said = self._began
        self._state = RunState()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, detail="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with self._whoever_reads():
                self._bar.stop()
        elif self._state.planned:
            self.say(f"{_done(self._state)}, {self._detail()}")

    def update(self, state: RunState) -> None:
        """Show the state: at once on a terminal, every ten seconds elsewhere."""
        self._state = state
        if self._bar is not None:
            with self._whoever_reads():
                self._bar.update(
                    self._task,
                    total=state.planned or None,
                    completed=state.done_before + state.committed + state.rejected + state.duplicates,
                    description=state.note or "rows",
                    detail=self._detail(),
                )
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self.say(state.note or f"{_done(state)}, {self._detail()}")

    def say(self, line: str) -> None:
        """One line of text, without anything that a terminal would obey."""
        self._said = time.monotonic()
        plain = "".join(letter if letter.isprintable() else " " for letter in line)
        with self._whoever_reads():
            if self._bar is not None:
                self._bar.console.print(plain, markup=False, highlight=False)
            else:
                print(plain, file=sys.stderr, flush=True)  # noqa: T201 - progress of a command line, without a terminal

    @contextmanager
    def _whoever_reads(self) -> Iterator[None]:
        """A terminal that was closed must not end the run: it goes on unseen, and ends by its signal."""
        try:
            yield
        except OSError:
            self._bar = None

    def _detail(self) -> str:
        state, seconds = self._state, time.monotonic() - self._began
        waiting = state.received - state.committed - state.rejected - state.duplicates
        parts = [f"{state.tokens / seconds:,.0f} tokens/s" if seconds > 0 else "", f"{state.rejected:,} rejects"]
        parts.append(f"{waiting:,} not yet committed" if waiting > 0 else "")
        parts.append(f"${state.usd:,.2f}" if state.usd else "")
        return ", ".join(part for part in parts if part)


def _done(state: RunState) -> str:
    return f"{state.done_before + state.committed:,} of {state.planned:,} rows committed"


def _bar() -> "Progress":
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Terminal(stderr=True),
    )
