"""Ten times: a student that never saw one class learns it from the teacher's soft labels of the other nine.

The transfer set leaves out every image of the class (Hinton et al. 2015, section 3: «mythical 3»). All ten labels of an
image are stored, so any temperature is exact: both sides are taken to 1/T and normalised.
"""

import json
from pathlib import Path

import numpy as np
import torch
from teacher import CLASSES, PIXELS, TEST
from torch import Tensor, nn

from storage import Table, sql
from trainer import Objective, SoftTargets, distillation_loss
from trainer.gate import gate
from trainer.losses import student_logits

STEPS, SEED = 150, 0
# name → the loss; hard_weight = 1 is cross-entropy on the teacher's answer alone
LOSSES = {
    "soft, T = 8": Objective(tail="renormalised", temperature=8.0),
    "soft, T = 1": Objective(tail="renormalised", temperature=1.0),
    "hard": Objective(hard_weight=1.0),
}


def labels() -> tuple[Tensor, Tensor, SoftTargets]:
    """Images [N, 64], their true classes [N], and what the teacher says of them."""
    query = "SELECT prompt, reference, top_ids, top_logprobs, token_ids[1] AS answer FROM soft_labels ORDER BY key"
    columns = sql("soft_labels", query).to_pydict()
    images = torch.tensor([json.loads(prompt) for prompt in columns["prompt"]]).float() / 16
    count = len(images)
    targets = SoftTargets(
        target_ids_N=torch.tensor(columns["answer"]),
        top_ids_NK=torch.tensor(columns["top_ids"]),
        top_logprobs_NK=torch.tensor(columns["top_logprobs"]),
        log_tail_N=torch.full((count,), -torch.inf),
        weight_N=torch.ones(count),
    )
    return images, torch.tensor([int(reference) for reference in columns["reference"]]), targets


def train(images: Tensor, targets: SoftTargets, objective: Objective) -> nn.Module:
    """A network with 64 hidden units, all images in each step."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        student = student_logits(model(images), targets, objective.temperature)
        optimizer.zero_grad()
        distillation_loss(student, targets, objective).loss.backward()
        optimizer.step()
    return model


def some(targets: SoftTargets, chosen: Tensor) -> SoftTargets:
    """The targets at some of the positions."""
    return SoftTargets(
        **{name: value[chosen] for name in targets.__slots__ if (value := getattr(targets, name)) is not None}
    )


def main() -> None:
    """Audit, train, and write recall.json: the withheld class's recall on images that nobody saw."""
    gate(Table.open("soft_labels"), Path("use.toml"))
    torch.set_num_threads(1)
    images, classes, targets = labels()
    test_images, test_classes = torch.tensor(PIXELS[TEST]).float() / 16, torch.tensor(CLASSES[TEST])
    recalls: dict[str, list[float]] = {name: [] for name in LOSSES}
    for withheld in range(10):
        others = classes != withheld  # by the true class: the teacher's answer may be wrong
        for name, objective in LOSSES.items():
            student = train(images[others], some(targets, others), objective)
            said = student(test_images[test_classes == withheld]).argmax(-1)
            recalls[name].append(float((said == withheld).float().mean()))
    print(f"{'recall of the withheld class':<30} {'mean':>6} {'worst':>6}")
    for name, values in recalls.items():
        print(f"{name:<30} {np.mean(values):>6.1%} {min(values):>6.1%}")
    Path("recall.json").write_text(json.dumps(recalls, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
