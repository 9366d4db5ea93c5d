"""Two well-known collectors at the server of `benchmarks.collect`, each run by the Python of its own environment.

python collect_others.py curator|distilabel URL CONNECTIONS COUNT. Both ask by chat, with the log-probabilities of 20
candidates, and write what they keep where they always do: curator a data set of responses, distilabel a distiset.
"""

import os
import sys
import tempfile


def curator(url: str, connections: int, count: int) -> None:
    """bespokelabs-curator with its own backend for OpenAI's interface, and no limit that it would wait for."""
    os.environ |= {"CURATOR_DISABLE_RICH_DISPLAY": "1", "TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1"}
    import tiktoken
    from bespokelabs import curator as library
    from bespokelabs.curator.request_processor.online.openai_online_request_processor import (
        OpenAIOnlineRequestProcessor,
    )

    # It estimates tokens by an encoding that it would download: one of single bytes is there at once, and cheaper.
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(name="bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={})
    OpenAIOnlineRequestProcessor.get_token_encoding = lambda self: encoding

    model = library.LLM(
        model_name="gpt-4o-mini",
        backend="openai",
        generation_params={"logprobs": True, "top_logprobs": 20, "max_tokens": 64},
        backend_params={
            "base_url": f"{url}/v1",
            "api_key": "none",
            "max_requests_per_minute": 10**7,
            "max_tokens_per_minute": 10**10,
            "max_concurrent_requests": connections,
            "return_completions_object": True,
        },
    )
    found = model([f"Prompt {number}" for number in range(count)], working_dir=tempfile.mkdtemp())
    assert len(found.dataset if hasattr(found, "dataset") else found) == count


def distilabel(url: str, connections: int, count: int) -> None:
    """distilabel with as many prompts a batch as connections: it sends a batch at once and waits for all of it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline("bench", cache_dir=tempfile.mkdtemp()) as pipeline:
        prompts = LoadDataFromDicts(
            data=[{"instruction": f"Prompt {number}"} for number in range(count)], batch_size=connections
        )
        model = OpenAILLM(
            model="gpt-4o-mini",
            base_url=f"{url}/v1",
            api_key="none",
            generation_kwargs={"max_new_tokens": 64, "logprobs": True, "top_logprobs": 20},
        )
        prompts >> TextGeneration(llm=model, input_batch_size=connections)
    found = pipeline.run(use_cache=False)
    assert len(found["default"]["train"]) == count


if __name__ == "__main__":
    {"curator": curator, "distilabel": distilabel}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
