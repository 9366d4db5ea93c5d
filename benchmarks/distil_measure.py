"""Students beside the teacher's whole distribution, on held-out rows: what the stored labels alone cannot tell.

A student's vocabulary is the part of the teacher's that the table needs; for all alike the teacher is renormalised to
it.
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


def measure(config: TrainConfig, teacher_folder: Path, students: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Held-out figures by (loss, seed): exact KL(teacher ‖ student), calibration error, NLL of the text, top-1.

    A seed holds out its own rows, so its students are measured on those.
    """
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype="auto").eval()
    runs: list[dict[str, Any]] = []
    kept: list[float] = []
    for seed in sorted({seed for _, seed in students}):
        seeded = config.model_copy(update={"data": config.data.model_copy(update={"seed": seed, "pack": False})})
        table = Table.open(config.table)
        untrained = make_student(seeded, table)
        models = {UNTRAINED: untrained.model.eval()}
        models |= {name: load_student(folder).eval() for (name, of), folder in students.items() if of == seed}
        batches = make_stream(seeded, table, untrained, split="holdout", batch_size=4, repeat=False)
        found, masses = _columns(teacher, models, batches, untrained.vocabulary.id_map)
        kept += masses
        runs += [{"loss": name, "seed": seed, **_run(values)} for name, values in found.items()]
    return {
        "runs": runs,
        "tokens": len(kept),
        "teacher_mass_in_vocabulary": float(np.mean(kept)),
        "student_body": _body(untrained.model),
        "teacher_body": _body(teacher),
        "vocabulary": untrained.model.config.vocab_size,
        "bucket_wins_every_seed": _bucket_wins(runs),
    }


@torch.inference_mode()
def _columns(
    teacher: Any, models: Mapping[str, Any], batches: Iterable[Mapping[str, torch.Tensor]], id_map: Any
) -> tuple[dict[str, np.ndarray], list[float]]:
    """One line of figures a held-out token for each model, and the teacher's mass in the vocabulary."""
    back = torch.from_numpy(np.argsort(np.where(id_map < 0, len(id_map), id_map))[: (id_map >= 0).sum()])
    random = torch.Generator().manual_seed(0)
    found: dict[str, list[np.ndarray]] = {name: [] for name in models}
    kept: list[float] = []
    for number, batch in enumerate(batches):
        log_p, mass = _teacher(teacher, batch, back)
        kept += mass.tolist()
        draws = torch.multinomial(log_p.exp(), DRAWS, replacement=True, generator=random)
        row = torch.full((len(log_p),), number, dtype=torch.float64)
        for name, model in models.items():
            log_q = loss_logits(model, batch).log_softmax(-1)
            found[name].append(_figures(log_p, log_q, draws, batch["target_ids"], row))
    return {name: np.concatenate(parts) for name, parts in found.items()}, kept


def _teacher(teacher: Any, batch: Mapping[str, torch.Tensor], back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p over the student's vocabulary [N, V] and the mass that it holds [N]."""
    causal = teacher.base_model(input_ids=back[batch["input_ids"]], attention_mask=(batch["document_ids"] > 0).long())
    hidden = causal.last_hidden_state.flatten(0, 1)[batch["loss_index"]]
    parts = []
    for some in hidden.split(32):
        logits = teacher.get_output_embeddings()(some).float()
        parts.append((logits[:, back].log_softmax(-1), (logits[:, back].logsumexp(-1) - logits.logsumexp(-1)).exp()))
    return torch.cat([p for p, _ in parts]), torch.cat([m for _, m in parts])


def _figures(
    log_p: torch.Tensor, log_q: torch.Tensor, draws: torch.Tensor, targets: torch.Tensor, row: torch.Tensor
) -> np.ndarray:
    """[N, 5 + DRAWS]: row, KL, NLL, agreement, confidence, hits of the draws."""
    confidence, best = log_q.max(-1)
    columns = [
        row[:, None],
        (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True),
        -log_q.gather(-1, targets[:, None]),
        (best == log_p.argmax(-1))[:, None],
        confidence.exp()[:, None],
        draws == best[:, None],
    ]
    return np.asarray(torch.cat([column.double() for column in columns], dim=-1))


def _bucket_wins(runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the bucket loss has a lower KL than every loss without a bucket, seed by seed."""
    kl = {(run["loss"], run["seed"]): run["kl"] for run in runs}
    return all(value > kl["bucket", seed] for (name, seed), value in kl.items() if not name.startswith("bucket"))


def _run(values: np.ndarray) -> dict[str, float]:
    confidence = np.repeat(values[:, 4], DRAWS)
    low, high = interval(values[:, 0], values[:, 1])
    return {
        "kl": float(values[:, 1].mean()),
        "kl_low": low,
        "kl_high": high,
        "calibration_error": calibration_error(confidence, values[:, 5:].reshape(-1)),
        "nll": float(values[:, 2].mean()),
        "top1_agreement": float(values[:, 3].mean()),
    }


def _body(model: Any) -> int:
    """Parameters besides the embeddings and a head tied to them or not."""
    apart = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    return sum(p.numel() for p in model.parameters() if id(p) not in apart)
