"""The model card: what the student was made of, under which terms, and what its maker now owes.

It repeats the decision, it does not interpret it; the front matter is what model hubs read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from policies.decision import Decision


def write_card(folder: Path, record: dict[str, Any], decision: Decision) -> Path:
    """README.md in the student's folder, from its training record and the decision that allowed it."""
    path = folder / "README.md"
    path.write_text(card(record, decision), encoding="utf-8")
    return path


def card(record: dict[str, Any], decision: Decision) -> str:
    """The card as Markdown."""
    facts = decision.facts.get("use", {}).get("student", {}) or {}
    name, licence = facts.get("name") or "student", facts.get("licence")
    teachers = sorted({material["teacher"]["model"] for material in record["materials"]})
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [distillation, potstill]"]
    if licence:
        known = licence if not licence.startswith("LicenseRef-") else "other"
        head += [f"license: {known.lower()}", *([f"license_name: {licence}"] if known == "other" else [])]
    sections = [
        "\n".join([*head, "---"]),
        f"# {name}",
        f"A student of {', '.join(teachers)}, trained on its stored soft labels; written by `potstill train`.",
        "## What is owed\n\n" + _obligations(decision),
        "## What it was made of\n\n" + _materials(record),
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
