"""Work that a signal stops gently: the first Ctrl-C, SIGTERM or SIGHUP asks it to end, the second ends it at once.

Works in a script, in a thread, and in a notebook, where an event loop runs already: there it gets a thread of its own.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from collectors.errors import Interrupted

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `work` to its end; the event that it gets is set by the first signal. The second raises Interrupted."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_watched(work, asyncio.Event()))
    return _in_a_thread(work)


async def _watched(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]], stop: asyncio.Event) -> T:
    task = asyncio.ensure_future(work(stop))
    loop = asyncio.get_running_loop()
    # What is ignored stays ignored: `nohup` lets a run outlive its terminal.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    signals = heeded if threading.current_thread() is threading.main_thread() else []

    def heard() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in signals:
        loop.add_signal_handler(number, heard)
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted("Stopped at once; what was received is kept, and the same command resumes.") from None
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _in_a_thread(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    result: Future[T] = Future()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def begin() -> T:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        return await _watched(work, stop)

    def run() -> None:
        try:
            result.set_result(asyncio.run(begin()))
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="potstill-run")
    thread.start()
    while True:
        try:
            return result.result()
        except KeyboardInterrupt:
            loop, stop = started.result()
            loop.call_soon_threadsafe(stop.set)
