"""Prose that every Python brings: docstrings of the standard library as a prompt file: python corpus.py COUNT

Writes prompts.jsonl: COUNT passages, each text once, in the order of a hash; their licence is PSF-2.0.
"""

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEAST, MOST = 150, 700
"""Characters of a passage."""


def passages() -> Iterator[str]:
    """Paragraphs that are mostly words, of every module, class and function."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for block in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(block.split())
                    words = sum(character.isalpha() or character == " " for character in text)
                    if LEAST <= len(text) <= MOST and words >= 0.85 * len(text):
                        yield text


def main(count: int) -> None:
    ordered = sorted((hashlib.sha256(text.encode()).hexdigest(), text) for text in set(passages()))[:count]
    lines = (json.dumps({"id": digest[:16], "prompt": text}, ensure_ascii=False) for digest, text in ordered)
    Path("prompts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"prompts.jsonl: {len(ordered)} passages")


if __name__ == "__main__":
    main(int(sys.argv[1]))
