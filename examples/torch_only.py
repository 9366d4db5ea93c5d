"""A training loop by hand: only torch, the stream, the fused head and the gate; nothing of transformers.

python examples/torch_only.py TABLE USE.toml [STEPS]
"""

import json
import sys
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from storage import Table
from trainer import Objective, SoftLabelStream, SoftTargets, fused_distillation_loss
from trainer.gate import gate

LENGTH, WIDTH, HEADS = 256, 64, 4


class Student(nn.Module):
    """A decoder of two layers whose output embedding is its input embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor) -> Tensor:
        """Last hidden states [B, S, D]; a token sees itself and what stands before it in its own document."""
        before = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        hidden = (document_ids[:, :, None] != document_ids[:, None, :]) | ~before
        embedded = self.tokens(input_ids) + self.positions(position_ids)
        return self.layers(embedded, mask=hidden.repeat_interleave(HEADS, dim=0))


def train(path: str, use: str, steps: int, vocabulary: int = 262_144) -> tuple[Student, list[float]]:
    table = Table.open(path)
    decision = gate(table, Path(use))  # exit 3 when the policies refuse this use of the table
    print(f"{decision.verdict}: {len(decision.obligations)} obligations", file=sys.stderr)
    stream = SoftLabelStream(
        table, sequence_length=LENGTH, batch_size=8, pack=True, seed=0, holdout=0.05, split="train"
    )
    student, objective, losses = Student(vocabulary), Objective(hard_weight=0.1), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    for step, batch in enumerate(islice(stream, steps), 1):
        hidden = student(batch["input_ids"], batch["position_ids"], batch["document_ids"]).flatten(0, 1)
        targets = SoftTargets.from_batch(batch)
        parts = fused_distillation_loss(hidden[batch["loss_index"]], student.tokens.weight, targets, objective)
        parts.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(parts.divergence / parts.soft_tokens))
        if step % 10 == 0:
            print(
                f"step {step}: KL {losses[-1]:.3f} nats, first tokens agree {parts.agreement / parts.soft_tokens:.0%}"
            )
    Path("stream.json").write_text(json.dumps(stream.state_dict()))  # stream.load_state_dict goes on from here
    return student, losses


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 100)
