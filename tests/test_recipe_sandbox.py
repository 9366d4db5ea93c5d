"""What verify.py of the reasoning recipe does with a model's code: harm stays in the child and counts as wrong."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

VERIFY = Path(__file__).parents[1] / "examples" / "recipes" / "5_reasoning" / "verify.py"
HARM = {
    "endless loop": "while True: pass",
    "waits": "import time\ntime.sleep(60)",
    "fork": "import os\nos.fork()",
    "process": "import subprocess\nsubprocess.run(['true'])",
    "becomes another program": "import os\nos.execv('/bin/true', ['true'])",
    "1 GB": "bytes(1 << 30)",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', PORT))",
    "empties a file": "try:\n    open('FILE', 'w')\nexcept BaseException:\n    pass",
    "removes a file": "import os\nos.remove('FILE')",
    "ends early": "raise SystemExit(3)",
}


@pytest.fixture
def verify() -> Any:
    specification = importlib.util.spec_from_file_location("verify", VERIFY)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.SECONDS = 1
    return module


@pytest.mark.parametrize("harm", HARM)
def test_a_models_code_does_no_harm_and_counts_as_wrong(verify: Any, tmp_path: Path, harm: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = HARM[harm].replace("FILE", str(file)).replace("PORT", str(server.getsockname()[1]))
        assert not verify.runs_true(program)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert file.read_text(encoding="utf-8") == "kept"


def test_the_network_is_kept_away_by_the_kernel_too(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "GUARD", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert not verify.runs_true(reach)
        monkeypatch.setattr(verify, "APART", [])
        assert verify.runs_true(reach)


def test_what_is_right_is_found_right(verify: Any) -> None:
    assert verify.runs_true("import math, re\nassert math.sqrt(4) == 2 and re.match('a', 'a')")
    assert verify.sum_is_right(" 7. The answer is 7.\n\nCarl", "7")
    assert not verify.sum_is_right(" 7. The answer is 8.", "7")
    assert not verify.sum_is_right(" 8", "7")
    assert verify.function_is_right("x\n\ndef square(x):\n    return", " x * x\n\ndef f(", "square(3) == 9")
    assert not verify.function_is_right("x\n\ndef square(x):\n    return", " x + x", "square(3) == 9")
    assert not verify.function_is_right("def square(x):\n    return", "", "square(3) == 9")
