"""What is owed, as texts to put beside a student or a data set, and what a student's finished folder still lacks.

The texts are made from a decision alone. Licence texts are not: the register holds readings, so whoever ships a
student adds the copies themselves, and the read-back says which are not there yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from policies.decision import Decision, Obligation, Reason
from policies.licences import parse
from policies.merge import worst
from policies.names import bears, begins_with

LEAST_LICENCE = 200
"""Characters below which a file is no licence text but a placeholder."""

OF_A_FOLDER = ("ATTRIBUTION_MISSING", "NOTICE_MISSING")
"""Codes that come of reading a student's folder back, and of nothing else."""

Folder = Mapping[str, str]
"""A student's folder as its text files: path from the folder, with forward slashes → text."""


def texts(decision: Decision) -> dict[str, str]:
    """The files to write: LICENSE-OBLIGATIONS.md and NOTICE, by name."""
    return {"LICENSE-OBLIGATIONS.md": _obligations(decision), "NOTICE": _notice(decision)}


def card_metadata(decision: Decision) -> dict[str, Any]:
    """The front matter of a model card (https://huggingface.co/docs/hub/model-cards) that the decision settles."""
    student = decision.facts["use"].get("student", {})
    licence = student.get("licence")
    metadata: dict[str, Any] = {"tags": ["distillation", "trained-on-model-outputs"]}
    tree = None if licence is None else parse(licence)
    if tree is not None and tree.operator == "leaf" and not tree.key.startswith("LicenseRef-"):
        metadata["license"] = tree.key.lower()
    elif licence is not None:
        metadata |= {"license": "other", "license_name": licence, "license_link": "LICENSE"}
    if student.get("init_from") not in (None, "scratch"):
        metadata["base_model"] = student["init_from"]
    lines = lines_to_show(decision)
    if lines:
        metadata["attributions"] = lines
    copies = licence_copies(decision)
    if copies:
        metadata["licence_copies"] = copies
    metadata["ai_generated"] = True
    metadata["teachers"] = sorted({m["teacher"]["model"] for m in decision.facts["materials"]})
    metadata["policy_decision"] = decision.digest
    return metadata


def licence_copies(decision: Decision) -> list[str]:
    """Where the licence texts belong that must go with what is given away, as paths in its folder."""
    return sorted({_copy_name(o) for o in decision.obligations if o.due and o.type == "license_copy"})


def label(decision: Decision) -> str:
    """The line that labels what comes of teachers as made by machines; several terms and the EU's AI Act ask for it."""
    if decision.action == "publish_dataset":
        return "The completions in this data set are AI-generated: keep that label wherever they are published."
    return "Outputs of this model are AI-generated: label them so wherever they are published."


def lines_to_show(decision: Decision) -> list[str]:
    """The lines that must be shown, the first wording of each choice; none where the register has no wording."""
    shown = [o for o in decision.obligations if o.due and o.type in _SHOWN and "text" in o.params]
    return list(dict.fromkeys(_choices(o)[0] for o in shown))


def training_summary(decision: Decision) -> list[str]:
    """Lines for the EU's public summary of training content: which models made synthetic data, and how much."""
    lines = []
    for material in sorted(decision.facts["materials"], key=lambda m: (m["teacher"]["model"], m["signal"])):
        teacher = material["teacher"]
        revision = f" (revision {teacher['revision']})" if teacher["revision"] else ""
        how = f"access path {teacher['access_path']}, {material['signal'].replace('_', ' ')}"
        size = f"{material['rows']:,} rows, {material['tokens']:,} tokens"
        lines.append(f"Synthetic data made by {teacher['model']}{revision}: {size}; {how}")
    return lines


def read_back(decision: Decision, folder: Folder) -> Decision:
    """The decision with what the folder shows as done marked so, and a reason for each duty that is due and open.

    Duties that leave no trace in a folder, such as asking for a licence, stay open; they are said, not counted against.
    """
    obligations = tuple(
        o.model_copy(update={"discharged": True}) if _done(o, decision, folder) else o for o in decision.obligations
    )
    open_ = [o for o in obligations if o.due and not o.discharged and _leaves_a_trace(o)]
    reasons = (*decision.reasons, *(_missing(o) for o in open_))
    verdict = worst([decision.verdict, *(r.verdict for r in reasons)])
    return decision.model_copy(update={"obligations": obligations, "reasons": reasons, "verdict": verdict})


def _leaves_a_trace(obligation: Obligation) -> bool:
    """Whether a folder can show that the duty is done; a line or a mark only where the register has its wording."""
    needed = {"no_trademark_use": "mark", **dict.fromkeys(_SHOWN, "text")}.get(obligation.type)
    return obligation.type in _CHECKS and (needed is None or needed in obligation.params)


def beyond_the_folder(decision: Decision) -> list[Obligation]:
    """What the action triggers and no folder can show as done, such as asking for a licence."""
    return [o for o in decision.obligations if o.due and o.trigger != "always" and not _leaves_a_trace(o)]


def _where(obligation: Obligation) -> str:
    """Where the folder is to show that the duty is done."""
    if obligation.type == "license_copy":
        return f"put the licence's text in {_copy_name(obligation)}"
    if obligation.type in ("use_restrictions_enforceable", "share_alike"):
        return "put the student's own licence in LICENSE, with what the terms demand of it"
    if obligation.type in ("name_prefix", "no_trademark_use"):
        return "rename the student, and the title of README.md with it"
    if obligation.type in _ON_THE_CARD:
        return "write the line in README.md"
    if obligation.type in _NOTICES and "text" not in obligation.params:
        return f"write it in NOTICE, in a line that begins with {obligation.document}:"
    return "write it in NOTICE, with the name of the terms document"


_SHOWN = ("attribution_display", "attribution_statement")
_ON_THE_CARD = (*_SHOWN, "name_prefix", "no_trademark_use", "disclose_ai_generated", "label_ai_generated")


def _missing(obligation: Obligation) -> Reason:
    code = "ATTRIBUTION_MISSING" if obligation.type in _ON_THE_CARD else "NOTICE_MISSING"
    return Reason(
        code=code,
        verdict="review",
        teacher=obligation.teachers[0] if obligation.teachers else None,
        document=obligation.document,
        section=obligation.section,
        gist=f"Not found in the student's folder: {obligation.text}",
        fix=(_where(obligation),),
        facts={"teachers": list(obligation.teachers)},
    )


def _obligations(decision: Decision) -> str:
    due = [o for o in decision.obligations if o.due]
    lines = [
        f"# What is owed for this {_what(decision)}",
        "",
        f"Policy verdict `{decision.verdict}` for `{decision.action}` under bundle `{decision.bundle}`,",
        f"decision `{decision.digest}`. Not legal advice.",
    ]
    for document in dict.fromkeys(o.document for o in due):
        lines += ["", f"## {document}", ""]
        for obligation in (o for o in due if o.document == document):
            section = f" ({obligation.section})" if obligation.section else ""
            lines.append(f"- {obligation.text}{section}")
    copies = licence_copies(decision)
    if copies:
        lines += ["", f"## Licence texts to put beside the {_what(decision)}", "", *(f"- `{name}`" for name in copies)]
    return "\n".join([*lines, ""])


def _what(decision: Decision) -> str:
    return "data set" if decision.action == "publish_dataset" else "model"


def _notice(decision: Decision) -> str:
    due = [o for o in decision.obligations if o.due]
    teachers = ", ".join(sorted({m["teacher"]["model"] for m in decision.facts["materials"]}))
    made = "holds" if decision.action == "publish_dataset" else "was trained on"
    lines = [f"This {_what(decision)} {made} outputs of {teachers}.", *lines_to_show(decision)]
    for obligation in due:
        if obligation.type == "mark_modified":
            made_from = ", ".join(obligation.teachers)
            lines.append(f"It is a modified work under {obligation.document}: distilled from {made_from}.")
        elif obligation.type in _NOTICES and "text" in obligation.params:  # others are not known, and stay open
            lines.append(f"{obligation.document}: {obligation.params['text']}")
    return "\n".join([*dict.fromkeys(lines), ""])


_NOTICES = ("notice_file", "notice_retain", "notice_origin")


def _choices(obligation: Obligation) -> list[str]:
    """The wordings that satisfy a display duty."""
    return [choice.strip(" .") for choice in obligation.params["text"].split("|")]


def _copy_name(obligation: Obligation) -> str:
    return f"LICENSES/{obligation.document.partition('@')[0]}.txt"


def _done(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    return _leaves_a_trace(obligation) and _CHECKS[obligation.type](obligation, decision, folder)


def _shown(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    card = _plain(folder.get("README.md", ""))
    return any(_plain(choice) in card for choice in _choices(obligation))


def _noticed(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    notice = folder.get("NOTICE", "")
    if "text" in obligation.params:
        return _plain(obligation.params["text"]) in _plain(notice)
    return re.search(rf"^{re.escape(obligation.document)}: *\S", notice, re.MULTILINE) is not None


def _marked(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    notice = _plain(folder.get("NOTICE", ""))
    return f"modified work under {obligation.document}" in notice


def _labelled(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    return "ai-generated" in _plain(folder.get("README.md", ""))


def _copied(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    return len(folder.get(_copy_name(obligation), "").strip()) >= LEAST_LICENCE


def _restricted(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    policy = obligation.params.get("policy") or obligation.document.partition("@")[0]
    return _plain(policy) in _plain(folder.get("LICENSE", ""))


def _named(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    name = decision.facts["use"].get("student", {}).get("name") or ""
    title = re.search(r"^# +(.+)$", folder.get("README.md", ""), re.MULTILINE)
    prefix = str(obligation.params["value"])
    return begins_with(name, prefix) and title is not None and begins_with(title[1], prefix)


def _unmarked(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    title = re.search(r"^# +(.+)$", folder.get("README.md", ""), re.MULTILINE)
    return title is not None and not bears(title[1], obligation.params["mark"])


def _shared(obligation: Obligation, decision: Decision, folder: Folder) -> bool:
    """That the student is under this licence was judged already; its text must be there."""
    return len(folder.get("LICENSE", "").strip()) >= LEAST_LICENCE


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).casefold()


_CHECKS: dict[str, Callable[[Obligation, Decision, Folder], bool]] = {
    "attribution_display": _shown,
    "attribution_statement": _shown,
    "disclose_ai_generated": _labelled,
    "label_ai_generated": _labelled,
    "license_copy": _copied,
    "mark_modified": _marked,
    "name_prefix": _named,
    "no_trademark_use": _unmarked,
    "notice_file": _noticed,
    "notice_origin": _noticed,
    "notice_retain": _noticed,
    "share_alike": _shared,
    "use_restrictions_enforceable": _restricted,
}
"""How a duty shows in a folder."""
