"""The teacher cut down to the tokens that the texts need, so that labels and measure speak of the same distribution.

Gemma 3 ties its head to its embedding: a row fewer there is a token fewer in both. What is left is a model of its own
with its own softmax; no student's vocabulary can lack what it says. Saved in float32: a bfloat16 head gives logits
0.125 apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from trainer.student_vocabulary import read_own
from trainer.vocabulary import TokenUse, trim_vocabulary


def trim(source: Path, folder: Path, texts: Iterable[str]) -> None:
    """Write the model of `source` with only the tokens that `texts` (and what builds them) have."""
    definition = read_own(source)
    tokenizer = definition.build()
    occurs = np.zeros(definition.size(), dtype=bool)
    for text in texts:
        occurs[tokenizer.encode(text).ids] = True
    trimmed = trim_vocabulary(definition, TokenUse(occurs, np.zeros(occurs.size), 0), candidate_loss=0.0)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    kept = torch.from_numpy(np.argsort(np.where(trimmed.id_map < 0, occurs.size, trimmed.id_map))[: trimmed.size])
    rows = model.get_input_embeddings().weight.data[kept].clone()
    model.resize_token_embeddings(trimmed.size, mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    for role in ("bos", "eos", "pad"):
        token = getattr(trimmed.definition, role)
        for config in (model.config, model.generation_config):
            setattr(config, f"{role}_token_id", trimmed.definition.vocabulary().get(token))
    trimmed.definition.save(folder, model_max_length=model.config.max_position_embeddings)
    model.save_pretrained(folder)
