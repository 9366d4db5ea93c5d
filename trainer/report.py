"""report.json for machines and report.html for people: one page that holds all it shows, and asks no network.

Charts are plain SVG without scripts, so the page is small and opens anywhere. Text of models and prompts is escaped and
stripped of control characters.
"""

from __future__ import annotations

import html
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {"untrained": "untrained", "student": "student (soft labels)", "hard_twin": "twin (hard labels only)"}
COLOURS = {"untrained": "#9aa0a6", "student": "#1a73e8", "hard_twin": "#e8710a"}
MEASURES = {  # key -> heading, format, what it means
    "kl": ("KL to the teacher", "{:.3f}", "nats per token, 95 % interval over rows; lower is closer to the teacher"),
    "head_loss": ("of it on the candidates", "{:.3f}", "nats per token on the stored top k"),
    "tail_loss": ("of it on the tail", "{:.3f}", "nats per token on all other tokens together"),
    "nll": ("negative log-likelihood", "{:.3f}", "nats per token that the teacher realised"),
    "perplexity": ("perplexity", "{:.1f}", "its exponential"),
    "top1_agreement": ("top-1 agreement", "{:.1%}", "how often the likeliest token is the teacher's"),
    "acceptance": ("acceptance bound", "{:.1%}", "Σ min(p, q): what speculative decoding could keep at most"),
    "calibration_error": ("calibration error", "{:.1%}", "against tokens drawn from the teacher"),
}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#202124;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}small,.note{color:#5f6368}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.35rem .6rem;border-bottom:1px solid #dadce0}
th:first-child,td:first-child{text-align:left}td.best{font-weight:600}
.scroll{overflow-x:auto}svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#202124}
.tokens{font:14px/2 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0 .8rem}
.tokens span{padding:.15rem 0;border-radius:2px;color:#202124}.prompt{color:#5f6368}
.who{display:inline-block;min-width:12rem;font-size:.85rem;color:#5f6368}
.key{display:inline-block;width:9rem;height:.8rem;vertical-align:middle;background:linear-gradient(90deg,#f6aea9,#fff,#a8dab5)}
"""


def write_report(content: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Writes report.json and report.html into `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    as_json, as_html = out / "report.json", out / "report.html"
    as_json.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    as_html.write_text(page(content), encoding="utf-8")
    return as_json, as_html


def page(content: Mapping[str, Any]) -> str:
    """The HTML page."""
    body = [
        "<h1>How close is the student to its teacher?</h1>",
        f"<p>{_headline(content)}</p>",
        "<h2>On rows that no student has seen</h2>",
        f'<p class="note">{content["rows"]:,} held-out rows, {content["tokens"]:,} tokens of '
        f"{_text(content['table'])}, version {content['table_version']}. The teacher's own negative log-likelihood of "
        f"these tokens is {content['teacher']['nll']:.3f} nats.</p>",
        _bars(content["models"]),
        f'<div class="scroll">{_table(content["models"])}</div>',
        "<h2>While training</h2>",
        '<p class="note">KL to the teacher on the training rows, by step.</p>',
        _curves(content["curves"]),
        "<h2>Token by token</h2>",
        '<p class="note">Held-out answers of the teacher, each token coloured by the probability that a model gave it: '
        'unlikely <span class="key"></span> likely. Point at a token for the figures.</p>',
        *(_example(example) for example in content["examples"]),
        "<h2>What was trained</h2>",
        f"<p>{_trained(content)}</p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Student report</title>'
    style = f"<style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}{style}</head><body>{"".join(body)}</body></html>\n'


def _headline(content: Mapping[str, Any]) -> str:
    models = content["models"]
    text = (
        f"Training lowered the KL to the teacher from {models['untrained']['kl']:.3f} to "
        f"<b>{models['student']['kl']:.3f}</b> nats per token"
    )
    if "hard_twin" not in models:
        return text + "."
    twin = models["hard_twin"]["kl"]
    return text + f"; the same student trained on hard labels only, on the same rows and steps, reached {twin:.3f}."


def _trained(content: Mapping[str, Any]) -> str:
    student, lost = content["student"], content["student"]["mass_lost_to_trimming"]
    sentences = [
        f"{student['architecture']} from {student['origin']}: {student['parameters']:,} parameters, "
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


def _table(models: Mapping[str, Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{_text(NAMES[name])}</th>" for name in models)
    lines = [f"<tr><th></th>{heads}</tr>"]
    for key, (title, form, meaning) in MEASURES.items():
        cells = []
        for model in models.values():
            shown = form.format(model[key])
            if key == "kl":
                shown += f"<br><small>{model['kl_low']:.3f} to {model['kl_high']:.3f}</small>"
            cells.append(f"<td>{shown}</td>")
        lines.append(f"<tr><td>{title}<br><small>{meaning}</small></td>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _bars(models: Mapping[str, Mapping[str, Any]]) -> str:
    """KL of each model as a bar with its interval."""
    largest = max(model["kl_high"] for model in models.values()) or 1.0
    scale, parts = 460 / largest, []
    for line, (name, model) in enumerate(models.items()):
        top = 34 * line + 6
        width, low, high = (model[key] * scale for key in ("kl", "kl_low", "kl_high"))
        parts.append(f'<text x="0" y="{top + 16}">{_text(NAMES[name])}</text>')
        parts.append(f'<rect x="170" y="{top}" width="{width:.1f}" height="22" fill="{COLOURS[name]}"/>')
        parts.append(f'<path d="M{170 + low:.1f} {top + 11}H{170 + high:.1f}" stroke="#202124"/>')
        parts.append(f'<text x="{170 + high + 8:.1f}" y="{top + 16}">{model["kl"]:.3f}</text>')
    return _svg(700, 34 * len(models) + 8, parts, "KL to the teacher by model")


def _curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    last, highest = max(p[0] for p in points), max(p[1] for p in points)
    parts = ['<path d="M50 10V210H690" fill="none" stroke="#9aa0a6"/>']
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<text x="8" y="{214 - 200 * share:.0f}">{highest * share:.2f}</text>')
    parts.append(f'<text x="640" y="228">step {last:,}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        path = "L".join(f"{50 + 640 * step / last:.1f} {210 - 200 * value / highest:.1f}" for step, value in curve)
        parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts.append(f'<text x="500" y="{24 + 18 * number}" style="fill:{COLOURS[name]}">{_text(NAMES[name])}</text>')
    return _svg(700, 236, parts, "KL on the training rows by step")


def _svg(width: int, height: int, parts: Sequence[str], title: str) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{title}">{"".join(parts)}</svg>'


def _example(example: Mapping[str, Any]) -> str:
    names = list(example["tokens"][0]["probability"]) if example["tokens"] else []
    prompt = f'<span class="prompt">{_text(example["prompt"])}</span>'
    lines = []
    for name in names:
        tokens = "".join(_token(token, name) for token in example["tokens"])
        who = _text(NAMES.get(name, name))
        lines.append(f'<div class="who">{who}</div><div class="tokens">{prompt}{tokens}</div>')
    return "<hr>" + "".join(lines)


def _token(token: Mapping[str, Any], name: str) -> str:
    probability = token["probability"][name]
    told = [f"{NAMES.get(who, who)}: {_percent(p)}" for who, p in token["probability"].items()]
    told += ["the teacher's best:", *(f"{text!r} {_percent(p)}" for text, p in token["candidates"])]
    title = _text("\n".join(told))
    return f'<span title="{title}" style="background:{_colour(probability)}">{_text(token["text"])}</span>'


def _percent(probability: float | None) -> str:
    return "unknown" if probability is None else f"{probability:.1%}"


def _colour(probability: float | None) -> str:
    """Red below, white at, green above a probability of about 3 %, on a logarithmic scale from 0.1 % to 100 %."""
    if probability is None:
        return "#e8eaed"
    place = 1 + math.log10(max(probability, 1e-3)) / 1.5
    near, share = ((168, 218, 181), place) if place > 0 else ((246, 174, 169), -place)
    return "#" + "".join(f"{round(255 + (channel - 255) * min(share, 1.0)):02x}" for channel in near)


def _text(text: object) -> str:
    """Escaped, without control characters but line breaks and tabs."""
    kept = "".join(c for c in str(text) if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return html.escape(kept, quote=True)
