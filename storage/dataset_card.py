"""The README.md of an exported table: what Hugging Face reads (YAML), and what a person must know before using it."""

from __future__ import annotations

import json

from policies.decision import Decision
from policies.discharge import label, lines_to_show
from storage.display import printable
from storage.schema import ALIGNMENT, SCHEMA_VERSION
from storage.table import Table

_SIZES = [
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
]


def card(table: Table, decision: Decision) -> str:
    """The card of a table version under the decision that let it go; names that come from rows are made harmless."""
    materials = table.materials()
    rows, tokens = sum(m.rows for m in materials), sum(m.tokens for m in materials)
    terms = sorted({name for material in materials for name in material.terms or ()})
    models = sorted({material.teacher.model for material in materials})
    size = next((name for limit, name in _SIZES if rows < limit), "n>10M")
    front = {
        "license": "other",
        "license_name": " AND ".join(terms),
        "license_link": "LICENSE-OBLIGATIONS.md",
        "prompt_licences": sorted({material.prompt_licence or "not stated" for material in materials}),
        "tags": ["soft-labels", "knowledge-distillation", "logprobs", "potstill"],
        "size_categories": [size],
        "source_datasets": ["original"],
        "teachers": models,
        "ai_generated": True,
        "attributions": lines_to_show(decision),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    }
    # JSON is YAML, and its strings cannot break out of the front matter
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    lines = ["---", head, "---", "# Soft labels", ""]
    lines += [
        f"{rows:,} teacher sequences with {tokens:,} labelled tokens (version {table.version} of a potstill table,",
        "",
    ]
    lines[-2] += (
        f" schema version {SCHEMA_VERSION}). {ALIGNMENT}; log-probabilities are natural logarithms, `log_tail` is the"
    )
    lines[-2] += " mass outside the stored candidates."
    lines += [
        "| teacher | revision | access | signal | terms | prompt licence | rows | tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in materials:
        cells = [
            m.teacher.model,
            m.teacher.revision,
            m.teacher.access_path,
            m.signal,
            ", ".join(m.terms or ()),
            m.prompt_licence,
        ]
        safe = [printable(cell or "").replace("|", "\\|") for cell in cells]
        lines.append(f"| {' | '.join(safe)} | {m.rows:,} | {m.tokens:,} |")
    lines += [
        "",
        "## Terms",
        "",
        f"Decided for `{decision.action}`: **{decision.verdict}** (bundle {decision.bundle}, decision",
        "",
    ]
    lines[-2] += f" {decision.digest[:12]} in decision.json). Whoever uses the data is bound by the teachers' terms:"
    lines += [*(f"- {printable(line)}" for line in lines_to_show(decision)), f"- {label(decision)}"]
    lines += [f"- {printable(duty.text)} ({duty.document}, {duty.trigger})" for duty in decision.obligations]
    return "\n".join(lines) + "\n"
