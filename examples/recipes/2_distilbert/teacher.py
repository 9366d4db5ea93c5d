"""A masked model of our own as the teacher: a small BERT, trained for a few seconds on prompts.jsonl.

BERT's own weights do as well: name their folder in run.toml (endpoint.model_path) and train.toml (student.teacher).
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

STEPS, LENGTH = 400, 32
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """WordPiece, as BERT's, over all words of the texts: a trained vocabulary would be another one in every run."""
    clean, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts for word, _ in cut.pre_tokenize_str(clean.normalize_str(text))})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = clean, cut
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=LENGTH, **roles)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    texts = [json.loads(line)["prompt"] for line in Path("prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    pieces = tokenizer(texts)
    ids = pieces(texts, truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt")["input_ids"]
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(pieces), hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, STEPS + 1):
        batch = ids[torch.randint(len(ids), (16,))]
        chosen = (torch.rand(batch.shape) < 0.15) & (batch >= len(SPECIAL))
        masked = batch.masked_fill(chosen, pieces.mask_token_id)
        loss = model(masked, attention_mask=(batch > 0).long(), labels=batch.masked_fill(~chosen, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item():.2f} nats at the masked tokens", flush=True)
    model.save_pretrained("teacher")
    pieces.save_pretrained("teacher")


if __name__ == "__main__":
    main()
