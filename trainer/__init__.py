"""potstill room: trainer. Streams a soft-label table into a student: exact order, tail-honest losses, a small head.

Names are imported on first use, so that `import trainer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.across import AcrossRows as AcrossRows
    from trainer.classify import TextRows as TextRows
    from trainer.errors import LossRefused as LossRefused
    from trainer.errors import RowGroupLost as RowGroupLost
    from trainer.errors import StreamRefused as StreamRefused
    from trainer.errors import TrainError as TrainError
    from trainer.head import fused_distillation_loss as fused_distillation_loss
    from trainer.losses import LossParts as LossParts
    from trainer.losses import SoftTargets as SoftTargets
    from trainer.losses import distillation_loss as distillation_loss
    from trainer.losses import student_logits as student_logits
    from trainer.objective import Objective as Objective
    from trainer.stream import SoftLabelStream as SoftLabelStream

_HOME = {
    "AcrossRows": "trainer.across",
    "LossParts": "trainer.losses",
    "LossRefused": "trainer.errors",
    "Objective": "trainer.objective",
    "RowGroupLost": "trainer.errors",
    "SoftLabelStream": "trainer.stream",
    "SoftTargets": "trainer.losses",
    "StreamRefused": "trainer.errors",
    "TextRows": "trainer.classify",
    "TrainError": "trainer.errors",
    "distillation_loss": "trainer.losses",
    "fused_distillation_loss": "trainer.head",
    "student_logits": "trainer.losses",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
