"""The command line: fast, lazy, documented, and honest about whose rooms it stands on."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

import potstill

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "potstill.py")]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def command(name: str) -> click.Command:
    group = potstill.cli
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in potstill.COMMANDS)])
def test_help_answers_within_250_ms(arguments: list[str]) -> None:
    """Of a processor's time: other work on the machine is not ours, and no command waits for anything."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        if min(seconds) < 0.25:
            return
    pytest.fail(f"potstill {' '.join(arguments)} took {min(seconds):.3f} s at best")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, potstill; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    )
    heavy = {"policies", "storage", "collectors", "trainer", "torch", "pyarrow", "duckdb", "pydantic", "httpx", "rich"}
    assert not loaded & heavy


@pytest.mark.parametrize("name", list(potstill.COMMANDS))
def test_a_command_is_what_the_table_says(name: str) -> None:
    found = command(name)
    assert found.help is not None
    first_line = found.help.split("\n\n")[0].replace("\n", " ")
    assert first_line == potstill.COMMANDS[name][1]
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", list(potstill.COMMANDS))
def test_the_generated_page_is_current(name: str) -> None:
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text(encoding="utf-8")
    context = click.Context(command(name), info_name=f"potstill {name}", max_content_width=100, terminal_width=100)
    assert command(name).get_help(context) in page, "run `make docs`"


def test_every_exit_code_is_documented() -> None:
    documented = set(re.findall(r"\b(\d+) [a-z]", potstill.cli.help or ""))
    used: set[str] = set()
    for room in potstill.ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            used |= set(re.findall(r"exit_code(?:: ClassVar\[int\]|: int)? = (\d+)", path.read_text(encoding="utf-8")))
    assert used, "no room says its exit codes any more: this test must learn how they do"
    assert used <= documented


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["sql"], ["check", "--no-such-option"], ["collect", "no-such-file.toml"]]
)
def test_bad_usage_is_exit_2_without_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("--debug", "collect", "no-such-file.toml").stderr
    assert "Traceback" in run("collect", "no-such-file.toml", POTSTILL_DEBUG="1").stderr


def test_a_room_that_another_distribution_took_over_is_one_sentence(tmp_path: Path) -> None:
    foreign = tmp_path / "trainer"
    foreign.mkdir()
    (foreign / "__init__.py").write_text('"""Coqui trainer."""\n')
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import potstill; potstill.main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"potstill: the package 'trainer' found at {foreign} is not potstill's")
    assert len(done.stderr.splitlines()) == 1


def test_init_writes_a_project_that_the_rooms_can_read_and_leaves_files_alone(tmp_path: Path) -> None:
    (tmp_path / "use.toml").write_text("# mine\n")
    assert run("init", str(tmp_path)).returncode == 0
    assert (tmp_path / "use.toml").read_text() == "# mine\n"
    (tmp_path / "use.toml").unlink()
    assert run("init", str(tmp_path)).returncode == 0
    from collectors.config import RunConfig
    from policies.settings import read_toml
    from policies.use import Use
    from trainer.config import TrainConfig

    read_toml(tmp_path / "run.toml", RunConfig)
    read_toml(tmp_path / "use.toml", Use)
    read_toml(tmp_path / "train.toml", TrainConfig)
    for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        assert {"id", "prompt"} <= json.loads(line).keys()


@pytest.mark.parametrize("room", potstill.ROOMS)
def test_the_public_surface_of_a_room_is_what_it_says(room: str) -> None:
    module = __import__(room)
    assert len(set(module.__all__)) == len(module.__all__)
    assert set(module.__all__) == set(module._HOME)
    for name, home in module._HOME.items():
        found, meant = getattr(module, name), getattr(importlib.import_module(home), name)
        # `evaluate` is its module once that is imported, which can be called as the function can
        assert getattr(found, name, found) is meant and callable(found) == callable(meant)
        assert home.split(".")[0] == room
    assert not hasattr(module, "no_such_name")
