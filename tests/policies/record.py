"""Write documents.json and said.json anew: `python -m tests.policies.record`. Read the difference before a commit."""

from __future__ import annotations

import json
from pathlib import Path

from policies.documents import Document, load_bundle
from tests.policies.cases import recorded, said

PATH = Path(__file__).parent / "data" / "documents.json"
SAID = PATH.parent / "said.json"


def entry(document: Document) -> str:
    """One document's lines: an outcome a block, an action a line."""
    found = recorded(document, load_bundle())
    blocks = []
    for line, actions in found["cases"].items():
        cases = ",\n".join(f"    {json.dumps(action)}: {json.dumps(names)}" for action, names in actions.items())
        blocks.append(f"   {json.dumps(line)}: {{\n{cases}\n   }}")
    cases_of_all, demanded = ",\n".join(blocks), json.dumps(found["standing"])
    return f' {json.dumps(document.name)}: {{\n  "standing": {demanded},\n  "cases": {{\n{cases_of_all}\n  }}\n }}'


if __name__ == "__main__":
    entries = ",\n".join(entry(document) for document in load_bundle().documents)
    PATH.write_text("{\n" + entries + "\n}\n")
    words = {document.name: said(document, load_bundle()) for document in load_bundle().documents}
    SAID.write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", "utf-8")
