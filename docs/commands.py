"""Write docs/commands/: one page a command, from the command's own --help (make docs)."""

from __future__ import annotations

from pathlib import Path

import click

import potstill

FOLDER = Path(__file__).parent / "commands"


def main() -> None:
    """Write a page for each command, and take away the pages of commands that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for page in FOLDER.glob("*.md"):
        page.unlink()
    group = potstill.cli
    for name in potstill.COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        context = click.Context(command, info_name=f"potstill {name}", max_content_width=100, terminal_width=100)
        text = f"# potstill {name}\n\n```\n{command.get_help(context)}\n```\n"
        (FOLDER / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
