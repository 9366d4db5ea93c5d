"""Whatever model is accepted keeps documents apart, packed or not, and gives its own logits; others are refused."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.trainer.test_student import batch_of
from trainer.attention import attention_mask
from trainer.documents import DocumentsMixed, prove_documents
from trainer.forward import loss_logits
from trainer.task import TASKS, Task, task_of

torch.set_num_threads(1)


def tiny(kind: str, task: Task, **options: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_key_value_heads": 1} if kind == "gemma2" else {}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 1}
    config = AutoConfig.for_model(kind, **(sizes | {"cls_token_id": None, "sep_token_id": None} | options))
    torch.manual_seed(0)
    return TASKS[task].auto_class.from_config(config).eval()


ACCEPTED: list[tuple[str, Task]] = [
    *(("llama", "causal"), ("gpt2", "causal"), ("gemma2", "causal"), ("opt", "causal")),
    *((kind, "masked") for kind in ("bert", "distilbert", "roberta", "modernbert", "electra")),
    *((kind, "classification") for kind in ("bert", "roberta", "llama")),
]


@pytest.mark.parametrize(("kind", "task"), ACCEPTED)
def test_a_student_is_accepted_when_documents_stay_apart(kind: str, task: Task) -> None:
    model = tiny(kind, task)
    assert task_of(model) == task
    prove_documents(model, pack=task != "classification")


@pytest.mark.parametrize(("kind", "task"), [("bloom", "causal"), ("mamba", "causal"), ("mpnet", "masked")])
def test_a_student_that_mixes_them_is_accepted_unpacked_alone(kind: str, task: Task) -> None:
    model = tiny(kind, task)
    prove_documents(model, pack=False)
    with pytest.raises(DocumentsMixed, match="pack = false"):
        prove_documents(model, pack=True)


def test_logits_that_are_not_the_models_own_are_refused() -> None:
    with pytest.raises(DocumentsMixed, match="own forward"):
        prove_documents(tiny("cohere", "causal"), pack=False)


@pytest.mark.parametrize("causal", [True, False])
def test_a_packed_window_is_that_of_a_document_alone(causal: bool) -> None:
    """Documents longer than the window, so that what lies outside it matters."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 2}
    model = tiny("gemma3_text", "causal", num_key_value_heads=1, head_dim=16, **kinds) if causal else None
    model = model or tiny("modernbert", "masked", local_attention=4, global_attn_every_n_layers=2)
    one, two = [3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15]
    packed = loss_logits(model, batch_of([[one, two]]))
    alone = torch.cat([model(torch.tensor([ids])).logits[0] for ids in (one, two)])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
    masks = attention_mask(torch.ones(1, 8, dtype=torch.int64), model.config, torch.float32, causal=causal)
    assert isinstance(masks, dict) and not torch.equal(masks["full_attention"], masks["sliding_attention"])
