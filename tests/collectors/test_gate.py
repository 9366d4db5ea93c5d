"""The gate before the first request: what the prompts' licence leaves unsaid is asked before anything is paid for."""

from __future__ import annotations

from pathlib import Path

import pytest

from collectors.errors import ReviewNeeded
from collectors.gate import enforce, judge
from tests.collectors.runs import run_config


def test_prompts_without_a_licence_need_a_review_before_anything_is_asked(tmp_path: Path) -> None:
    config = run_config(tmp_path, "http://127.0.0.1:9")
    enforce(judge(config, ("CC0-1.0",)))
    with pytest.raises(ReviewNeeded, match="licence of the prompts is not stated"):
        enforce(judge(config, ("CC0-1.0", None)))
