"""train.toml as typed settings: what to train on, which student, which loss.

Each section refuses keys that it does not know. `[training]` alone is handed on, to transformers.TrainingArguments,
with defaults that suit a small student; its names are checked when the training starts: only transformers knows them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from policies.gates import Gates
from policies.settings import LocalPath, Settings, read_toml
from trainer.objective import DivergenceName, Objective, TailName

Vocabulary = Literal["trimmed", "full"]
Task = Literal["causal", "masked", "classification"]


SPLITS_OF_A_STEP = {"per_device_train_batch_size", "gradient_accumulation_steps"}
"""May change on resume, together with the number of ranks, as long as a step has as many sequences."""


class LoraSettings(Settings):
    """Low-rank adapters on a frozen student; they are merged into its weights when it is saved."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class StudentSettings(Settings):
    """Where the student comes from, and its sizes where it is created from a configuration.

    The default sizes make about 3 million parameters besides the embeddings, which two cores train in minutes.
    """

    task: Task = "causal"
    """causal learns from rows of generate and score, masked from those of mask, classification from classify."""
    from_: Literal["config", "teacher-layers"] | LocalPath = Field(default="config", alias="from")
    teacher: LocalPath | None = None
    """Of teacher-layers: the local folder of the model whose layers are taken."""
    every: PositiveInt = 2
    """Of teacher-layers: layers 0, n, 2n, … are kept."""
    lora: LoraSettings | None = None
    vocabulary: Vocabulary = "trimmed"
    """trimmed: only the tokens that the table needs; full: the teacher's own. A local folder brings its own."""
    tokenizer: LocalPath | None = None
    """Of config: the student's own tokenizer (a tokenizer.json, or a folder with one) in place of the teacher's."""
    candidate_loss: float = Field(default=0.02, ge=0, lt=1)
    """How much of the teacher's mass per position may fall into the tail because its token was trimmed away."""
    eos_token: str | None = None
    """Which token ends a sequence, where the teacher's tokenizer does not say."""
    architecture: str | None = None
    """A model type of transformers; llama where nothing is said, bert for masked models and classifiers."""
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    key_value_heads: PositiveInt = 2
    intermediate_size: PositiveInt = 704


class DataSettings(Settings):
    """How rows become batches. `sequence_length` in tokens, `holdout` as a share of the rows."""

    sequence_length: PositiveInt = 512
    pack: bool = True
    seed: int = Field(default=0, ge=0)
    holdout: float = Field(default=0.05, ge=0, lt=1)
    where: str | None = None
    """An SQL condition on the columns of soft_labels; rows for which it is not true are not used."""
    leave_out: LocalPath | None = None
    """A file with a row's key a line: rows that are not used, such as answers that a check found wrong."""
    source_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """What a loss token counts for by its row's prompt_source; 1 for sources that are not named."""
    quarantine: float = Field(default=0.0, ge=0, lt=1)
    """Share of all rows that may be unreadable; they are named and left out."""


class LossSettings(Settings):
    """The distillation loss; `hard_weight = 1` trains on the realised tokens alone."""

    divergence: DivergenceName = "forward_kl"
    tail: TailName = "bucket"
    temperature: PositiveFloat = 1.0
    hard_weight: float = Field(default=0.1, ge=0, le=1)
    beta: NonNegativeFloat = 0.5
    skew: NonNegativeFloat = 0.1
    cosine_weight: NonNegativeFloat = 0.0
    """Of the mean 1 − cosine between the student's last hidden states and those of a local teacher."""
    teacher: LocalPath | None = None
    """The folder of that teacher; default: the one whose layers the student took."""

    def objective(self) -> Objective:
        """The loss of the labels. Raises LossRefused."""
        return Objective(**self.model_dump(exclude={"cosine_weight", "teacher"}))


class EvaluateSettings(Settings):
    """What the student is compared with, and how many examples the report shows."""

    hard_twin: bool = True
    """Train the same student on hard labels only, on the same rows and steps, and show it beside."""
    examples: int = Field(default=4, ge=0)
    answers: int = Field(default=200, ge=0)
    """Prompts with a reference that the students answer, to see how often they are right."""


class TrainConfig(Settings):
    """The whole of train.toml. Paths are relative to its folder."""

    table: LocalPath
    version: int | None = Field(default=None, ge=0)
    use: LocalPath
    waivers: tuple[LocalPath, ...] = ()
    """Files of the waivers that the gate takes into account; `train --waiver` adds to them."""
    out: LocalPath
    student: StudentSettings = StudentSettings()
    data: DataSettings = DataSettings()
    loss: LossSettings = LossSettings()
    gates: Gates = Gates()
    evaluate: EvaluateSettings = EvaluateSettings()
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _student_fits(self) -> Self:
        student = self.student
        if (student.from_ == "teacher-layers") != (student.teacher is not None):
            raise ValueError('student: from = "teacher-layers" and teacher = "FOLDER" belong together')
        if student.lora is not None and student.from_ == "config":
            raise ValueError("student: lora adapts a model that was trained before; name its folder in from")
        if student.hidden_size % student.heads or student.heads % student.key_value_heads:
            raise ValueError("student: heads must divide hidden_size, and key_value_heads must divide heads")
        if student.tokenizer is not None and student.from_ != "config":
            raise ValueError('student: tokenizer belongs to from = "config"; a folder brings its own')
        if self.loss.cosine_weight > 0 and self.hidden_teacher is None:
            raise ValueError('loss: cosine_weight needs teacher = "FOLDER", whose hidden states are followed')
        return self

    @property
    def hidden_teacher(self) -> Path | None:
        """The folder of the teacher whose hidden states are followed, if any are."""
        return (self.loss.teacher or self.student.teacher) if self.loss.cosine_weight > 0 else None

    @property
    def digest(self) -> str:
        """sha256 of the settings that decide what is trained, so not of `out`, checks, or how a step is split."""
        left_out: dict[str, Any] = {
            "out": True,
            "evaluate": True,
            "gates": True,
            "waivers": True,
            "training": SPLITS_OF_A_STEP,
        }
        settings = self.model_dump(mode="json", by_alias=True, exclude=left_out)
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def waived(self, files: tuple[Path, ...]) -> TrainConfig:
        """The same training with these waivers beside its own."""
        return self.model_copy(update={"waivers": (*self.waivers, *files)})

    def hard_twin(self) -> TrainConfig:
        """The same training on hard labels only, beside the student's folder."""
        loss = self.loss.model_copy(
            update={"hard_weight": 1.0, "temperature": 1.0, "tail": "bucket", "cosine_weight": 0.0}
        )
        return self.model_copy(update={"loss": loss, "out": self.out / "hard-twin"})


def read_config(path: Path) -> TrainConfig:
    """train.toml, checked. Raises ConfigError with every error and its place in the file."""
    return read_toml(path, TrainConfig)
