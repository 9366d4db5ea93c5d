"""The model card: what the student was made of, under which terms, and what its maker now owes.

It repeats the decision, it does not interpret it; the front matter is what model hubs read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policies.decision import Decision
from policies.discharge import (
    beyond_the_folder,
    card_metadata,
    label,
    licence_copies,
    lines_to_show,
    read_back,
    texts,
    training_summary,
)
from policies.report import printable
from storage.evidence import folder_texts


def write_card(folder: Path, record: dict[str, Any], decision: Decision) -> Path:
    """README.md, LICENSE-OBLIGATIONS.md, NOTICE and decision.json in the student's folder; → the card's path.

    All of them follow from the training record and the decision that allowed it. What a machine cannot write, such as
    the licence texts to put beside the weights, is named in LICENSE-OBLIGATIONS.md.
    """
    files = {"README.md": card(record, decision), "decision.json": decision.to_json(), **texts(decision)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "README.md"


def still_owed(folder: Path, decision: Decision) -> list[str]:
    """What a finished folder does not show yet, with the place for it, and what no folder shows; a line each.

    `potstill audit --student` says the same later. What holds at all times is in LICENSE-OBLIGATIONS.md alone.
    """
    found = read_back(decision, folder_texts(folder)).reasons[len(decision.reasons) :]
    open_ = [f"owed: {one.gist}; {one.fix[0]} ({_source(one.document, one.section)})" for one in found]
    rest = beyond_the_folder(decision)
    return open_ + [f"owed beside the folder: {one.text} ({_source(one.document, one.section)})" for one in rest]


def _source(document: str | None, section: str | None) -> str:
    return ", ".join(part for part in (document, section) if part)


def card(record: dict[str, Any], decision: Decision) -> str:
    """The card as Markdown."""
    name = decision.facts["use"].get("student", {}).get("name") or "student"
    teachers = sorted({material["teacher"]["model"] for material in record["materials"]})
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", **card_metadata(decision)}
    sections = [
        # JSON is YAML, and its strings cannot break out of the front matter
        "\n".join(["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---"]),
        f"# {printable(name)}",
        *lines_to_show(decision),
        f"A student of {printable(', '.join(teachers))}, trained on its stored soft labels by `potstill train`. "
        + label(decision),
        "## What is owed\n\n" + _obligations(decision),
        "## What it was made of\n\n" + _materials(record),
        "### For the EU's summary of training content\n\n"
        + "\n".join(f"- {printable(line)}" for line in training_summary(decision)),
        "## How\n\n" + _how(record),
    ]
    return "\n\n".join(sections) + "\n"


def _obligations(decision: Decision) -> str:
    verdict = (
        f"Verdict: **{decision.verdict}** for `{decision.action}` "
        f"(decision `{decision.digest}`, bundle `{decision.bundle}`)."
    )
    lines = []
    for duty in decision.obligations:
        if duty.discharged:
            continue
        place = f"{duty.document} {duty.section or ''}".strip()
        due = "due now" if duty.due else duty.trigger.replace("_", " ")
        lines.append(f"- {duty.text} ({place}; {due})")
    lines += [f"- Put the licence's text in `{name}`" for name in licence_copies(decision)]
    return verdict + "\n\n" + ("\n".join(lines) or "No obligation is known to the register.")


def _materials(record: dict[str, Any]) -> str:
    lines = [
        "| teacher | access | signal | terms | prompts' licence | rows | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for material in record["materials"]:
        teacher = material["teacher"]
        name = teacher["model"] + (f" @ {teacher['revision']}" if teacher["revision"] else "")
        terms = ", ".join(material["terms"] or ()) or "none"
        cells = [name, teacher["access_path"], material["signal"], terms, material["prompt_licence"] or "unknown"]
        cells = [printable(cell).replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join([*cells, f"{material['rows']:,}", f"{material['tokens']:,}"]) + " |")
    return "\n".join([*lines, "", f"Table `{Path(record['table']).name}`, version {record['table_version']}."])


def _how(record: dict[str, Any]) -> str:
    student, loss = record["student"], record["config"]["loss"]
    return "\n".join(
        [
            f"- student: {student['architecture']} from {student['origin']}, {student['parameters']:,} parameters, "
            f"vocabulary {student['vocabulary']:,} ({student['vocabulary_kind']})",
            f"- loss: {loss['divergence']}, tail {loss['tail']}, temperature {loss['temperature']}, "
            f"hard labels' weight {loss['hard_weight']}",
            f"- steps: {record['steps']:,} in {record['seconds']} s",
            f"- settings: `{record['config_digest']}`",
        ]
    )
