"""report.json for machines and report.html for people: one page that holds all it shows, and asks no network.

Its scripts are allowed by their digest alone, so text of models and prompts, which is escaped and stripped of control
characters besides, could not run even if it became markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.plots import COLOURS, NAMES, plots, script
from trainer.report_style import STYLE

MEASURES = {  # key -> heading, format, what it means, whether more is better
    "kl": ("KL to the teacher", "{:.3f}", "nats per token; 0 is the teacher itself", False),
    "head_loss": ("… on the candidates", "{:.3f}", "nats per token on the stored top k", False),
    "tail_loss": ("… on the tail", "{:.3f}", "nats per token on all other tokens together", False),
    "nll": ("negative log-likelihood", "{:.3f}", "nats per token that the teacher realised", False),
    "perplexity": ("perplexity", "{:.1f}", "its exponential", False),
    "top1_agreement": ("top-1 agreement", "{:.1%}", "how often the likeliest token is the teacher's", True),
    "acceptance": ("acceptance bound", "{:.1%}", "Σ min(p, q): what speculative decoding could keep at most", True),
    "calibration_error": ("calibration error", "{:.1%}", "against tokens drawn from the teacher", False),
}
PARTS = ("head_loss", "tail_loss")
"""Of one sum, so neither is better when it is smaller."""
FIGURES = {  # plot -> heading, what it shows
    "kl": ("How far from the teacher", "Mean KL on held-out rows; the line is its 95 % interval over rows."),
    "curves": ("While training", "KL to the teacher on the training rows, by step."),
    "reliability": ("Can its confidence be believed?", "On the dashed line a model is right as often as it is sure."),
    "entropy": ("Where it fails", "KL by how unsure the teacher itself is, six bins of equally many tokens."),
    "domain": ("By domain", "Held-out rows of each domain."),
}
START = 'addEventListener("DOMContentLoaded", () => drawPlots());'


def write_report(content: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Writes report.json and report.html into `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    as_json, as_html = out / "report.json", out / "report.html"
    as_json.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    as_html.write_text(page(content), encoding="utf-8")
    return as_json, as_html


def page(content: Mapping[str, Any]) -> str:
    """The HTML page."""
    drawn = plots(content)
    sentences = content["headline"]
    body = [
        "<header><h1>How close is the student to its teacher?</h1>",
        f'<p class="lead">{_text(sentences[0])}</p>',
        *(f"<p>{_text(sentence)}</p>" for sentence in sentences[1:]),
        "</header>",
        _tiles(content),
        f'<section class="figures">{"".join(_figure(name) for name in drawn)}</section>',
        "<section><h2>On rows that no student has seen</h2>",
        f'<p class="note">{content["rows"]:,} held-out rows, {content["tokens"]:,} tokens of '
        f"{_text(content['table'])}, version {content['table_version']}. {_teacher(content)}</p>",
        f'<div class="scroll">{_table(content)}</div></section>',
        *(_groups(content, by) for by in ("domain", "teacher", "licence")),
        "<section><h2>Token by token</h2>",
        '<p class="note">Held-out answers of the teacher, each token coloured by the probability that a model gave it: '
        'unlikely <span class="key"></span> likely. Point at a token for the figures.</p>',
        *(_example(example) for example in content["examples"]),
        "</section>",
        f"<footer>{_trained(content)}</footer>",
    ]
    return _document("".join(body), json.dumps(drawn))


def _document(body: str, data: str) -> str:
    code = script()
    allowed = " ".join(f"'sha256-{_sha256(one)}'" for one in (code, START))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed} 'unsafe-eval'"
    safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Student report</title>'
        f"<style>{STYLE}</style><script>{code}</script><script>{START}</script></head>"
        f'<body>{body}<script type="application/json" id="plots">{safe}</script></body></html>\n'
    )


def _sha256(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _tiles(content: Mapping[str, Any]) -> str:
    student, teacher = content["models"]["student"], content["teacher"]
    tiles = [("top-1 agreement", f"{student['top1_agreement']:.0%}"), ("KL, nats", f"{student['kl']:.2f}")]
    if "gap_closed" in content:
        tiles.append(("of the hard-label gap closed", f"{content['gap_closed']:.0%}"))
    tiles.append(("acceptance bound", f"{student['acceptance']:.0%}"))
    if student["accuracy"] and teacher["accuracy"]:
        tiles.insert(
            0, ("accuracy (teacher)", f"{student['accuracy']['value']:.0%} ({teacher['accuracy']['value']:.0%})")
        )
    tiles.append(("parameters", _short(student["parameters"])))
    if student["tokens_per_second"]:
        tiles.append(("tokens/s here", f"{student['tokens_per_second']:,.0f}"))
    cells = "".join(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in tiles)
    return f'<section class="tiles">{cells}</section>'


def _short(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _figure(name: str) -> str:
    title, meaning = FIGURES[name]
    return (
        f'<figure><figcaption><h3>{title}</h3><p class="note">{meaning}</p></figcaption>'
        f'<div class="plot" id="plot-{name}"></div></figure>'
    )


def _teacher(content: Mapping[str, Any]) -> str:
    teacher = content["teacher"]
    words = f"The teacher ({', '.join(teacher['names'])}) has a negative log-likelihood of {teacher['nll']:.3f} nats."
    return _text(words)


def _trained(content: Mapping[str, Any]) -> str:
    student, lost = content["student"], content["student"]["mass_lost_to_trimming"]
    sentences = [
        f"Student: {student['architecture']} from {student['origin']}, {student['parameters']:,} parameters, "
        f"{student['non_embedding_parameters']:,} of them outside the embeddings.",
        f"Vocabulary {student['vocabulary']:,} ({student['vocabulary_kind']}): {lost:.1%} of the teacher's mass moved "
        "to the tail.",
        f"Loss: {_loss(content['loss'])}.",
        f"Audit: {content['verdict']}, decision {content['decision'][:16]}.",
    ]
    return _text(" ".join(sentences))


def _loss(loss: Mapping[str, Any]) -> str:
    kind = f"{loss['divergence']}, tail {loss['tail']}"
    return f"{kind}, temperature {loss['temperature']}, hard labels {loss['hard_weight']}"


def _name(name: str) -> str:
    return f'<i class="dot" style="background:{COLOURS[name]}"></i>{_text(NAMES[name])}'


def _table(content: Mapping[str, Any]) -> str:
    models = content["models"]
    lines = ["<tr><th></th>" + "".join(f"<th>{_name(name)}</th>" for name in models) + "</tr>"]
    for key, (title, form, meaning, more) in MEASURES.items():
        values = {name: model[key] for name, model in models.items()}
        trained = [value for name, value in values.items() if name != "untrained" and not math.isnan(value)]
        best = (max if more else min)(trained) if len(trained) > 1 and key not in PARTS else None
        cells = []
        for name, value in values.items():
            shown = "unknown" if math.isnan(value) else form.format(value)
            low, high = models[name]["intervals"].get(key, (math.nan, math.nan))
            if not math.isnan(low):
                shown += f"<br><small>{form.format(low)} – {form.format(high)}</small>"
            cells.append(
                f'<td class="best">{shown}</td>' if value == best and name != "untrained" else f"<td>{shown}</td>"
            )
        lines.append(f"<tr><td>{title}<br><small>{meaning}</small></td>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}{_answers(models)}</table>"


def _answers(models: Mapping[str, Any]) -> str:
    """Lines that are there only where the students answered: accuracy, speed."""
    lines = []
    if any(model["accuracy"] for model in models.values()):
        cells = "".join(f"<td>{_accuracy(model['accuracy'])}</td>" for model in models.values())
        lines.append(f"<tr><td>right answers<br><small>beside the prompts' references</small></td>{cells}</tr>")
    if any(model["tokens_per_second"] for model in models.values()):
        cells = "".join(f"<td>{model['tokens_per_second'] or 0:,.0f}</td>" for model in models.values())
        lines.append(f"<tr><td>tokens/s<br><small>greedy, one prompt at a time, this machine</small></td>{cells}</tr>")
    return "".join(lines)


def _accuracy(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "unknown"
    return f"{found['value']:.1%}<br><small>{found['low']:.1%} – {found['high']:.1%}</small>"


def _groups(content: Mapping[str, Any], by: str) -> str:
    groups = content["groups"][by]
    if len(groups) < 2:
        return ""
    names = list(content["models"])
    heads = "".join(f"<th>{_name(name)}</th>" for name in names)
    lines = [f"<tr><th>{by}</th><th>rows</th>{heads}</tr>"]
    for group in groups:
        cells = []
        for name in names:
            one = group["models"][name]
            cells.append(
                f"<td>{one['kl']:.3f} <small>{one['kl_low']:.2f} – {one['kl_high']:.2f}</small>"
                f"<br><small>top-1 {one['top1_agreement']:.0%}</small></td>"
            )
        lines.append(f"<tr><td>{_text(group['name'] or '(none)')}</td><td>{group['rows']}</td>{''.join(cells)}</tr>")
    title = f"<h2>By {by}</h2>" + '<p class="note">KL to the teacher with its 95 % interval, top-1 agreement.</p>'
    return f'<section>{title}<div class="scroll"><table>{"".join(lines)}</table></div></section>'


def _example(example: Mapping[str, Any]) -> str:
    names = list(example["tokens"][0]["probability"]) if example["tokens"] else []
    lines = [f'<p class="prompt">{_text(example["prompt"])}</p>']
    for name in names:
        tokens = "".join(_token(token, name) for token in example["tokens"])
        lines.append(f'<div class="who">{_text(NAMES.get(name, name))}</div><div class="tokens">{tokens}</div>')
    return f"<article>{''.join(lines)}</article>"


def _token(token: Mapping[str, Any], name: str) -> str:
    probability = token["probability"][name]
    told = [f"{NAMES.get(who, who)}: {_percent(p)}" for who, p in token["probability"].items()]
    told += ["the teacher's best:", *(f"{text!r} {_percent(p)}" for text, p in token["candidates"])]
    title = _text("\n".join(told))
    return f'<span title="{title}" style="background:{_colour(probability)}">{_text(token["text"])}</span>'


def _percent(probability: float | None) -> str:
    return "unknown" if probability is None else f"{probability:.1%}"


def _colour(probability: float | None) -> str:
    """Red below, none at, green above a probability of about 3 %, on a logarithmic scale from 0.1 % to 100 %.

    See-through, so that the text stays readable on a light and on a dark page.
    """
    if probability is None:
        return "rgba(128,134,139,.25)"
    place = 1 + math.log10(max(probability, 1e-3)) / 1.5
    near, share = ("52,168,83", place) if place > 0 else ("234,67,53", -place)
    return f"rgba({near},{0.5 * min(share, 1.0):.2f})"


def _text(text: object) -> str:
    """Escaped, without control characters but line breaks and tabs."""
    kept = "".join(c for c in str(text) if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return html.escape(kept, quote=True)
