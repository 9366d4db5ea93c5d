"""Run files for tests: a llama.cpp-like server, Gemma as the teacher, prompts of our own making."""

import json
import os
from pathlib import Path
from typing import Any

from collectors.config import RunConfig, read_run
from tests.collectors.watched_key import KEY

os.environ["POTSTILL_CANARY_KEY"] = KEY

RUN = """
table = "table"
[teacher]
model = "google/gemma-3-270m"
revision = "gguf-q4_k_m"
[endpoint]
kind = "llamacpp"
base_url = "{url}"
api_key_env = "POTSTILL_CANARY_KEY"
[limits]
concurrency = {concurrency}
attempts = {attempts}
[prompts]
path = "prompts.jsonl"
licence = "CC0-1.0"
[ask]
top_k = 5
max_tokens = 6
samples = {samples}
{more}
"""


def write_prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{n}", "prompt": f"Prompt {n}"}) + "\n" for n in range(count)))
    return path


def write_run(folder: Path, url: str, *, prompts: int = 20, name: str = "run.toml", **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder, prompts)
    settings = {"concurrency": 8, "attempts": 6, "samples": 1, "more": ""} | fields
    path = folder / name
    path.write_text(RUN.format(url=url, **settings))
    return path


def run_config(folder: Path, url: str = "http://127.0.0.1:8000", **fields: Any) -> RunConfig:
    return read_run(write_run(folder, url, **fields))
