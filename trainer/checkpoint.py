"""What a checkpoint needs besides weights to go on exactly: table version, decision, settings and the stream's cursor.

Written after the weights, in one rename: a checkpoint without it was not finished and is passed over.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.data_files import sync_folder
from trainer.errors import TrainError

STATE_FILE = "potstill.json"


class ResumeRefused(TrainError):
    """There is nothing to resume, or it was started with other settings."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The provenance of a checkpoint. `stream` is SoftLabelStream.state_dict()."""

    table: str
    table_version: int
    decision: str
    config: str  # digest of the settings
    sequences_per_step: int
    step: int
    stream: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Durable on return, as is all else in `folder`."""
        for path in folder.iterdir():
            if path.is_file():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
        partial = folder / f".{STATE_FILE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / STATE_FILE)
        sync_folder(folder)


def last_checkpoint(out: Path) -> tuple[Path, TrainingState] | None:
    """The newest finished checkpoint under `out`."""
    found = []
    for folder in out.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and (folder / STATE_FILE).is_file():
            found.append((int(match[1]), folder))
    if not found:
        return None
    folder = max(found)[1]
    try:
        return folder, TrainingState(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ResumeRefused(
            f"{folder / STATE_FILE} is damaged; remove {folder} to resume from the one before."
        ) from error


def remove_checkpoints(out: Path) -> int:
    """Takes away what earlier trainings left to resume from, so that a resume never mixes two; → how many."""
    stale = [path.parent for path in out.glob(f"checkpoint-*/{STATE_FILE}")]
    for folder in stale:
        shutil.rmtree(folder)
    return len(stale)


def check_resume(state: TrainingState, folder: Path, *, table: Path, config: str, sequences_per_step: int) -> None:
    """Raises ResumeRefused when the checkpoint belongs to another table, other settings or another size of step.

    How a step is split over ranks and micro-batches may change: its gradient does not.
    """
    if Path(state.table) != table:
        raise ResumeRefused(f"{folder} was trained on {state.table}, not on {table}; choose another `out`.")
    if state.config != config:
        raise ResumeRefused(
            f"The settings have changed since {folder.name} was written; put them back to resume, "
            "or train anew without --resume."
        )
    if state.sequences_per_step != sequences_per_step:
        raise ResumeRefused(
            f"A step had {state.sequences_per_step} sequences when {folder.name} was written and would have "
            f"{sequences_per_step}: set per_device_train_batch_size × gradient_accumulation_steps × number of ranks to "
            f"{state.sequences_per_step} to resume, or train anew without --resume."
        )
