"""The demo's Gemma 3 270M as a folder that `kind = "local"` reads: python gemma.py FOLDER (a minute, once)."""

import sys
from pathlib import Path
from typing import Any


def save(folder: Path) -> None:
    """The GGUF's weights as bfloat16 safetensors, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from collectors.providers.embedded import default_gguf

    gguf = default_gguf()
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    model.hf_quantizer = None  # they are no longer quantised
    model.config.__dict__.pop("quantization_config", None)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__" and not (Path(sys.argv[1]) / "config.json").is_file():
    save(Path(sys.argv[1]))
