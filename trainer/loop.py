"""The transformers Trainer with our stream, our loss and one normaliser for a whole optimizer step.

The Trainer keeps the loop, the schedules, mixed precision, accumulation and trackers. Data bypasses accelerate, since
the stream already gives each rank its share; a loss is divided by all loss tokens of the step, over ranks and
micro-batches.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from trainer.checkpoint import TrainingState
from trainer.errors import TrainError
from trainer.forward import DistilledStudent
from trainer.losses import LossParts
from trainer.optimizer_state import OPTIMIZER, RANDOM, load_state, random_state, save_state, set_random_state
from trainer.stream import SoftLabelStream

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "max_steps": 1000,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    "logging_nan_inf_filter": False,
    "ddp_find_unused_parameters": False,
}
"""What `[training]` means where it is silent; the rest are transformers' own defaults."""
FROM_SCRATCH = {"learning_rate": 2e-3}
"""For a small student that starts from random weights."""
OURS = {
    "output_dir": "out at the top of the file",
    "resume_from_checkpoint": "potstill train --resume",
    "remove_unused_columns": None,
    "ignore_data_skip": None,
    "disable_tqdm": None,
    "do_train": None,
    "do_eval": None,
    "do_predict": None,
    "eval_strategy": "potstill evaluate",
    "dataloader_num_workers": None,
    "label_smoothing_factor": "[loss]",
    "push_to_hub": None,
}
"""Names that this project sets itself, and where to say it instead."""


class TrainingSettingsRefused(TrainError):
    """`[training]` names something that transformers.TrainingArguments does not have, or that is not its to say."""

    exit_code = 2


class LossNotFinite(TrainError):
    """The training has diverged."""


def training_arguments(settings: dict[str, Any], *, out: Path, seed: int, from_scratch: bool) -> TrainingArguments:
    """`[training]` as TrainingArguments. Raises TrainingSettingsRefused with every name that is wrong."""
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    problems = []
    for name in settings:
        if name in OURS:
            instead = OURS[name]
            problems.append(f"[training] {name}: is set by potstill" + (f"; use {instead}" if instead else ""))
        elif name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"[training] {name}: transformers.TrainingArguments has no such setting{hint}")
    if problems:
        raise TrainingSettingsRefused("\n".join(problems))
    chosen = {"seed": seed} | DEFAULTS | (FROM_SCRATCH if from_scratch else {}) | settings
    if int(chosen["max_steps"]) <= 0:
        raise TrainingSettingsRefused("[training] max_steps: must be above 0, since the stream of rows has no end.")
    try:
        return TrainingArguments(
            output_dir=str(out),
            remove_unused_columns=False,
            ignore_data_skip=True,
            disable_tqdm=True,
            log_level="error",
            **chosen,
        )
    except (TypeError, ValueError, ImportError) as error:
        raise TrainingSettingsRefused(f"[training] is refused by transformers: {error}") from error


class DistillationTrainer(Trainer):
    """Trains a DistilledStudent on a SoftLabelStream.

    Each checkpoint carries `provenance`, with the step and the stream's cursor at that moment.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: DistilledStudent,
        args: TrainingArguments,
        stream: SoftLabelStream,
        *,
        provenance: TrainingState,
        callbacks: list[TrainerCallback],
    ) -> None:
        try:
            super().__init__(model=model, args=args, train_dataset=stream, callbacks=callbacks)
        except (ValueError, ImportError, RuntimeError) as error:
            raise TrainingSettingsRefused(f"[training] is refused by transformers: {error}") from error
        self.out = Path(str(args.output_dir))
        self.provenance = provenance
        self.remove_callback(PrinterCallback)  # it prints each log as a dict
        self.stream = stream
        self._parts: dict[str, Tensor | float] = {}
        self._logged_at = (time.monotonic(), stream.wait_seconds)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The stream as it is: it makes whole batches, and each rank's own share."""
        return DataLoader(self.stream, batch_size=None)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Loss tokens of the whole optimizer step: all its micro-batches, all ranks."""
        tokens = torch.stack([batch["weight"].sum() for batch in batch_samples]).sum().to(device)
        total: Tensor = self.accelerator.gather(tokens).sum()
        return total

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **options: Any) -> Tensor:
        """Σ weight · loss / all loss tokens of the step, times the world size, since DDP averages gradients."""
        total = options["num_items_in_batch"].clamp(min=1e-9)
        parts: LossParts = model(normaliser=total / self.accelerator.num_processes, **inputs)
        for field in dataclasses.fields(parts):
            if field.name != "loss":
                value = getattr(parts, field.name)
                self._parts[field.name] = self._parts.get(field.name, 0.0) + value
        return parts.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what distillation is judged by since the last log."""
        if self._parts:
            sums = {name: float(value) for name, value in self._parts.items()}
            if not math.isfinite(logs.get("loss", 0.0)):
                raise LossNotFinite(
                    f"The loss is no longer finite at step {self.state.global_step}; lower learning_rate in "
                    "[training], or go on from an earlier checkpoint with --resume."
                )
            logs |= diagnostics(sums)
            now, waited = time.monotonic(), self.stream.wait_seconds
            seconds = max(now - self._logged_at[0], 1e-9)
            logs["tokens_per_second"] = sums["tokens"] / seconds
            logs["data_wait_share"] = (waited - self._logged_at[1]) / seconds
            self._parts, self._logged_at = {}, (now, waited)
        super().log(logs, start_time)

    @property
    def student(self) -> Any:
        """The causal model itself."""
        return self.accelerator.unwrap_model(self.model).model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The student alone, as safetensors; transformers' own would also pickle the arguments."""
        if self.args.should_save:
            inner = None if state_dict is None else {n.removeprefix("model."): t for n, t in state_dict.items()}
            adapters = {"save_embedding_layers": False} if hasattr(self.student, "peft_config") else {}
            self.student.save_pretrained(output_dir, state_dict=inner, **adapters)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        student = self.student
        if hasattr(student, "peft_config"):
            student.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            return
        weights: dict[str, Tensor] = {}
        for file in sorted(Path(resume_from_checkpoint).glob("model*.safetensors")):
            weights |= load_file(file)
        missing, unexpected = student.load_state_dict(weights, strict=False)
        tied = set(student.all_tied_weights_keys)
        if unexpected or set(missing) - tied:
            raise TrainError(
                f"The weights in {resume_from_checkpoint} are not this student's; train anew without --resume."
            )
        student.tie_weights()

    @property
    def _sharded(self) -> bool:
        """FSDP and DeepSpeed keep their state in formats of their own."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            assert self.optimizer is not None and self.lr_scheduler is not None
            state = {"optimizer": self.optimizer.state_dict(), "schedule": self.lr_scheduler.state_dict()}
            scaler = getattr(self.accelerator, "scaler", None)
            save_state(Path(output_dir), OPTIMIZER, state | ({"scaler": scaler.state_dict()} if scaler else {}))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            assert self.optimizer is not None and self.lr_scheduler is not None
            state = load_state(Path(checkpoint), OPTIMIZER)
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            if "scaler" in state:
                self.accelerator.scaler.load_state_dict(state["scaler"])

    def _save_scaler(self, output_dir: str) -> None:
        if self._sharded:
            super()._save_scaler(output_dir)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._sharded:
            super()._load_scaler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # a rank may come before the first one made it
        save_state(Path(output_dir), f"{RANDOM}-{self.args.process_index}", random_state())

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A rank that was not there when the checkpoint was written starts with its seed's numbers."""
        name = f"{RANDOM}-{self.args.process_index}"
        if checkpoint is not None and (Path(checkpoint) / f"{name}.json").is_file():
            set_random_state(load_state(Path(checkpoint), name))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Every rank's files, then the mark that they are whole, and only then older checkpoints go."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            state = dataclasses.replace(self.provenance, step=self.state.global_step, stream=self.stream.state_dict())
            state.save(self.out / f"checkpoint-{self.state.global_step}")
            rotate_checkpoints(output_dir=str(self.out), save_total_limit=limit)


def diagnostics(sums: dict[str, float]) -> dict[str, float]:
    """Means per token from sums of LossParts: divergence and cross-entropy in nats, masses and agreement as shares,
    of the divergence one value a chunk of text where the tokenizer is another."""
    soft, hard = max(sums["soft_tokens"], 1e-9), max(sums["hard_tokens"], 1e-9)
    return {
        "divergence": sums["divergence"] / max(sums["soft_tokens"] + sums["chunks"], 1e-9),
        "cross_entropy": sums["hard"] / hard,
        "teacher_mass": sums["teacher_mass"] / soft,
        "student_mass": sums["student_mass"] / soft,
        "agreement": sums["agreement"] / soft,
        **({"cosine_distance": sums["cosine"] / max(sums["tokens"], 1e-9)} if sums["cosine"] else {}),
    }


class Progress(TrainerCallback):
    """Calls `tell` with the step, all steps and the newest log."""

    def __init__(self, tell: Any) -> None:
        self.tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """After each log."""
        if logs and {"loss", "divergence"} <= logs.keys():  # the summary at the end has no loss of its own
            self.tell(state.global_step, state.max_steps, logs)
