"""Students beside the teacher's whole distribution, on held-out rows: what the stored labels alone cannot tell.

Student and teacher have the same tokens, so this is the full KL and no part of it is left out. It is the sum of three:
how much the K stored candidates get together, which of them, and which of all other tokens (chain rule of the KL).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from storage.table import Table
from trainer.config import TrainConfig
from trainer.forward import loss_logits
from trainer.measure import calibration_error, interval
from trainer.prepare import make_stream, make_student
from trainer.student import load_student

DRAWS = 8
"""Tokens that the teacher says at each position, for the calibration error."""
UNTRAINED = "untrained"
COLUMNS = ("row", "kl", "kl_mass", "kl_head", "kl_tail", "nll", "top1", "confidence", "tail", "teacher_tail")
"""Of each held-out token: its batch, the KL and its three parts, and what the rest mean by their names."""


def measure(config: TrainConfig, teacher_folder: Path, students: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Held-out figures by (loss, seed): exact KL(teacher ‖ student), calibration error, NLL of the text, top-1.

    A seed holds out its own rows, so its students are measured on those.
    """
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype="auto").eval()
    runs: list[dict[str, Any]] = []
    tokens = 0
    for seed in sorted({seed for _, seed in students}):
        seeded = config.model_copy(update={"data": config.data.model_copy(update={"seed": seed, "pack": False})})
        table = Table.open(config.table)
        untrained = make_student(seeded, table)
        models = {UNTRAINED: untrained.model.eval()}
        models |= {name: load_student(folder).eval() for (name, of), folder in students.items() if of == seed}
        batches = make_stream(seeded, table, untrained, split="holdout", batch_size=4, repeat=False)
        found = _columns(teacher, models, batches)
        tokens += len(found[UNTRAINED])
        runs += [{"loss": name, "seed": seed, **_run(values)} for name, values in found.items()]
    return {
        "runs": runs,
        "tokens": tokens,
        "student_body": _body(untrained.model),
        "teacher_body": _body(teacher),
        "vocabulary": untrained.model.config.vocab_size,
        "bucket_wins_every_seed": _bucket_wins(runs),
    }


@torch.inference_mode()
def _columns(
    teacher: Any, models: Mapping[str, Any], batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, np.ndarray]:
    """One line of figures a held-out token for each model."""
    random = torch.Generator().manual_seed(0)
    found: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for number, batch in enumerate(batches):
        log_p = loss_logits(teacher, batch).double().log_softmax(-1)
        draws = torch.multinomial(log_p.exp(), DRAWS, replacement=True, generator=random)
        row = torch.full((len(log_p),), number, dtype=torch.float64)
        for name, model in models.items():
            log_q = loss_logits(model, batch).double().log_softmax(-1)
            found[name].append(_figures(log_p, log_q, batch, draws, row))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _figures(
    log_p: torch.Tensor, log_q: torch.Tensor, batch: Mapping[str, torch.Tensor], draws: torch.Tensor, row: torch.Tensor
) -> np.ndarray:
    """[N, len(COLUMNS) + DRAWS]: COLUMNS, then hits of the draws."""
    confidence, best = log_q.max(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    head_p, head_q = (log.gather(-1, batch["top_ids"].long()) for log in (log_p, log_q))
    mass_p, mass_q = head_p.logsumexp(-1), head_q.logsumexp(-1)
    among = (head_p.exp() * (head_p - head_q)).sum(-1) - mass_p.exp() * (mass_p - mass_q)
    rest_p, rest_q = (torch.log1p(-mass.exp().clamp(max=1 - 1e-12)) for mass in (mass_p, mass_q))
    mass = mass_p.exp() * (mass_p - mass_q) + rest_p.exp() * (rest_p - rest_q)
    columns = (
        row,
        kl,
        mass,
        among,
        kl - mass - among,
        -log_q.gather(-1, batch["target_ids"].long()[:, None])[:, 0],
        best == log_p.argmax(-1),
        confidence.exp(),
        rest_q.exp(),
        rest_p.exp(),
    )
    hits = (draws == best[:, None]).double()
    return np.asarray(torch.cat([torch.stack([column.double() for column in columns], dim=-1), hits], dim=-1))


def _bucket_wins(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the bucket loss has a lower KL than every loss without a bucket, seed by seed."""
    kl = {(run["loss"], run["seed"]): run["kl"] for run in runs}
    return all(value > kl["bucket", seed] for (name, seed), value in kl.items() if not name.startswith("bucket"))


def _run(values: np.ndarray) -> dict[str, float]:
    column = {name: values[:, place] for place, name in enumerate(COLUMNS)}
    low, high = interval(column["row"], column["kl"])
    confidence = np.repeat(column["confidence"], DRAWS)
    return {
        "kl_low": low,
        "kl_high": high,
        "calibration_error": calibration_error(confidence, values[:, len(COLUMNS) :].reshape(-1)),
        **{name: float(column[name].mean()) for name in COLUMNS[1:]},
    }


def _body(model: Any) -> int:
    """Parameters besides the embeddings and a head tied to them or not."""
    apart = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(p.numel() for p in model.parameters() if id(p) not in apart)
