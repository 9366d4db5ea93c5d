"""Students beside the teacher's whole distribution, on held-out rows: what the stored labels alone cannot tell.

A student's vocabulary is the part of the teacher's that the table needs; for all alike the teacher is renormalised to
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from storage.table import Table
from trainer.config import TrainConfig
from trainer.fit import make_stream, make_student
from trainer.forward import loss_logits
from trainer.measure import calibration_error, interval
from trainer.student import load_student

DRAWS = 8
"""Tokens that the teacher says at each position, for the calibration error."""
UNTRAINED = "untrained"


@torch.inference_mode()
def measure(config: TrainConfig, teacher_folder: Path, students: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Held-out figures by (loss, seed): exact KL(teacher ‖ student), calibration error, NLL of the text, top-1."""
    table = Table.open(config.table)
    untrained = make_student(config, table)
    models = {key: load_student(folder).eval() for key, folder in students.items()}
    models[UNTRAINED, config.data.seed] = untrained.model.eval()
    teacher: Any = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype="auto").eval()
    id_map = untrained.vocabulary.id_map
    assert id_map is not None
    back = torch.from_numpy(np.argsort(np.where(id_map < 0, len(id_map), id_map))[: (id_map >= 0).sum()])
    data = config.data.model_copy(update={"pack": False})
    random = torch.Generator().manual_seed(0)
    found: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in models}
    kept: list[float] = []
    for number, batch in enumerate(make_stream(data, table, untrained, split="holdout", batch_size=4, repeat=False)):
        log_p, mass = _teacher(teacher, batch, back)
        kept += mass.tolist()
        draws = torch.multinomial(log_p.exp(), DRAWS, replacement=True, generator=random)
        row = torch.full((len(log_p),), number, dtype=torch.float64)
        for key, model in models.items():
            log_q = loss_logits(model, batch).log_softmax(-1)
            found[key].append(_figures(log_p, log_q, draws, batch["target_ids"], row))
    columns = {key: np.concatenate(parts) for key, parts in found.items()}
    return _summary(columns, students, kept, untrained, teacher)


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


def _summary(
    columns: Mapping[tuple[str, int], np.ndarray],
    students: Mapping[tuple[str, int], Path],
    kept: list[float],
    untrained: Any,
    teacher: Any,
) -> dict[str, Any]:
    runs = [{"loss": name, "seed": seed, **_run(values)} for (name, seed), values in columns.items()]
    kl = {(run["loss"], run["seed"]): run["kl"] for run in runs}
    rivals = [name for name, _ in students if not name.startswith("bucket")]
    wins = all(kl["bucket", seed] < kl[rival, seed] for _, seed in students for rival in set(rivals))
    return {
        "runs": runs,
        "tokens": len(next(iter(columns.values()))),
        "teacher_mass_in_vocabulary": float(np.mean(kept)),
        "student_body": _body(untrained.model),
        "teacher_body": _body(teacher),
        "vocabulary": untrained.model.config.vocab_size,
        "bucket_wins_every_seed": wins,
    }


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
