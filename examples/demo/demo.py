"""The whole story with a real teacher, told by typing the commands that a user would type (make demo).

Each step checks what it says: a wrong exit code or a number that does not add up ends the demo with exit 1.
It works in demo/, made anew each time; the commands that it shows can be typed there again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "demo"
POTSTILL = Path(sys.executable).with_name("potstill")
# what --quick makes smaller: file → (as it stands, as it is then)
QUICK = {
    "run.toml": [("max_tokens = 40", "max_tokens = 16")],
    "train.toml": [("max_steps = 100", "max_steps = 40")],
}
PROMPTS, QUICK_PROMPTS = 100, 40
PROBE_REQUESTS = 17  # at most, of a llama.cpp server


class DemoFailedError(Exception):
    """A step did not do what it says."""


def say(text: str = "") -> None:
    print(text, flush=True)


def step(number: int, title: str, *lines: str) -> None:
    """A heading, and what is about to be seen."""
    width = min(shutil.get_terminal_size().columns, 100)
    say(
        f"\n\033[1m━━ {number} · {title} {'━' * max(0, width - len(title) - 8)}\033[0m"
        if sys.stdout.isatty()
        else f"\n== {number} · {title}"
    )
    for line in lines:
        say(line)
    say()


def show(*arguments: str) -> list[str]:
    """Print a command as one would type it in demo/, and return it."""
    say("$ potstill " + " ".join(f'"{a}"' if " " in a else a for a in arguments))
    return [str(POTSTILL), *arguments]


def type_command(*arguments: str, expect: tuple[int, ...] = (0,)) -> None:
    """Type a command, let its output be seen, and insist on its exit code."""
    code = subprocess.run(show(*arguments), cwd=FOLDER).returncode
    check(code in expect, f"`potstill {arguments[0]}` ended with exit {code}, not {' or '.join(map(str, expect))}")
    if code:
        say(f"(exit {code})")
    say()


def ask(*arguments: str) -> Any:
    """The JSON answer of a command that is not shown."""
    done = subprocess.run([str(POTSTILL), *arguments], cwd=FOLDER, capture_output=True, text=True)
    check(done.returncode == 0, f"`potstill {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def query(sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask("sql", "soft_labels", sql, "--format", "json")
    return rows


def check(truth: bool, otherwise: str) -> None:
    if not truth:
        raise DemoFailedError(otherwise)


def prepare(quick: bool) -> int:
    """Make demo/ anew from the files beside this one; returns the number of prompts."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for source in HERE.glob("*.toml"):
        text = source.read_text(encoding="utf-8")
        for old, new in QUICK.get(source.name, []) if quick else []:
            check(old in text, f"{source.name} no longer says {old!r}")
            text = text.replace(old, new)
        (FOLDER / source.name).write_text(text, encoding="utf-8")
    lines = (HERE / "prompts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    prompts = QUICK_PROMPTS if quick else PROMPTS
    (FOLDER / "prompts.jsonl").write_text("".join(lines[:prompts]), encoding="utf-8")
    return prompts


def collect_and_stop(after_rows: int) -> None:
    """Type `collect`, and press Ctrl-C once some answers lie in the table."""
    with subprocess.Popen(show("collect", "run.toml"), cwd=FOLDER) as running:
        while running.poll() is None and committed() < after_rows:
            time.sleep(0.5)
        check(running.poll() is None, "the run ended before it could be stopped")
        running.send_signal(signal.SIGINT)
        code = running.wait(timeout=120)
    check(code == 130, f"a run stopped by Ctrl-C ended with exit {code}, not 130")
    say("(Ctrl-C, exit 130: what had been answered is kept)\n")


def committed() -> int:
    """Rows in the newest version of the table, 0 while there is none."""
    from storage.table import Table

    folder = FOLDER / "soft_labels"
    return (
        sum(file.rows for file in Table.open(folder).files()) if (folder / "soft_labels" / "_delta_log").exists() else 0
    )


def step_probe() -> None:
    step(1, "What can the teacher do?", "A dozen tiny requests to a real llama.cpp server give an endpoint card.")
    type_command("probe", "run.toml")


def step_collect(prompts: int) -> None:
    step(2, f"Collect {prompts} answers with their top-20 log-probabilities", "The run is stopped once in the middle.")
    collect_and_stop(after_rows=prompts // 4)
    say("The same command resumes: nothing is asked twice.")
    # 4: llama.cpp gives no log-probabilities for a token that ends inside a character: such an answer is a reject
    type_command("collect", "run.toml", expect=(0, 4))
    (rejects,) = query("SELECT count(*) AS n FROM rejects")
    check(rejects["n"] <= prompts // 20, f"{rejects['n']} answers of {prompts} could not become rows")
    (row,) = query("SELECT count(*) AS n, count(DISTINCT key) AS keys, sum(len(token_ids)) AS tokens FROM soft_labels")
    kept = row["n"] + rejects["n"]
    check(row["n"] == row["keys"] and kept == prompts, f"{row['n']} rows, {row['keys']} keys, {rejects['n']} rejects")
    (asked,) = query("SELECT sum(requests) AS n FROM runs")
    # a prompt is tokenized, then answered; each of the two starts begins with a probe
    check(asked["n"] - 2 * prompts <= 2 * PROBE_REQUESTS, f"{asked['n']} requests for {prompts} prompts")
    (tokens,) = query("SELECT count(*) AS n FROM tokens")
    (candidates,) = query("SELECT count(*) AS n FROM candidates")
    check(tokens["n"] == row["tokens"], f"the views disagree: {tokens['n']} tokens against {row['tokens']}")
    check(candidates["n"] == 20 * tokens["n"], f"{candidates['n']} candidates for {tokens['n']} tokens")
    (bare,) = query(
        "SELECT count(*) AS n FROM soft_labels WHERE len(terms) = 0 OR terms IS NULL OR policy_bundle IS NULL"
        " OR decision IS NULL OR tokenizer_sha256 IS NULL"
    )
    check(bare["n"] == 0, f"{bare['n']} rows lack terms, bundle, decision or tokenizer")
    type_command("status", "soft_labels")


def step_sql() -> None:
    step(3, "Three questions in SQL")
    say("Where does the teacher hesitate?")
    type_command(
        "sql",
        "soft_labels",
        "SELECT prompt, round(mean_entropy, 2) AS entropy_nats, completion FROM soft_labels"
        " ORDER BY mean_entropy DESC LIMIT 3",
    )
    say("How much probability do the top 20 miss?")
    type_command(
        "sql",
        "soft_labels",
        "SELECT count(*) AS tokens, round(avg(tail_mass), 4) AS mean_tail,"
        " round(quantile_cont(tail_mass, 0.9), 4) AS p90_tail,"
        " round(avg((rank = 1)::INT), 3) AS sampled_the_best FROM tokens",
    )
    say("What did it cost?")
    type_command(
        "sql",
        "soft_labels",
        "SELECT teacher.model AS teacher, count(*) AS answers, sum(usage.completion_tokens) AS tokens,"
        " round(sum(usage.cost_usd), 6) AS usd FROM soft_labels GROUP BY ALL",
    )


def step_audit() -> None:
    step(
        4,
        "May this table train a student to be given away under Apache-2.0?",
        "No: Gemma's terms make it a derivative.",
    )
    type_command("audit", "soft_labels", "--use", "use-refused.toml", expect=(3,))
    step(5, "And under the teacher's own terms?", "Yes, under conditions: what is then owed, and when.")
    type_command("audit", "soft_labels", "--use", "use-allowed.toml")


def step_train() -> None:
    step(6, "Train the student, and its twin on hard labels only")
    type_command("train", "train.toml")
    type_command("evaluate", "train.toml")
    report = json.loads((FOLDER / "student" / "report.json").read_text(encoding="utf-8"))
    kl = {name: report["models"][name]["kl"] for name in ("untrained", "student", "hard_twin")}
    check(kl["student"] < kl["hard_twin"] < kl["untrained"], f"held-out KL did not fall as promised: {kl}")


def step_leftovers() -> None:
    step(7, "Where everything lies")
    for path, what in {
        "soft_labels": "the table: Delta Lake, readable by DuckDB, Spark, Polars",
        "soft_labels/decisions": "every decision, named by its digest",
        "student": "weights, tokenizer, checkpoints",
        "student/README.md": "the model card with the obligations",
        "student/report.html": "the student beside its teacher and its hard-label twin",
    }.items():
        check((FOLDER / path).exists(), f"demo/{path} is missing")
        say(f"  demo/{path:<24} {what}")
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('student')\n"
        "student = AutoModelForCausalLM.from_pretrained('student')\n"
        "prompt = tokenizer('The ship left the harbour at dawn and', return_tensors='pt')\n"
        "answer = student.generate(**prompt, max_new_tokens=16, do_sample=False)[0]\n"
        "print('  ' + repr(tokenizer.decode(answer, skip_special_tokens=True)))"
    )
    say("\nThe student loads without potstill:")
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, env=environment)
    check(done.returncode == 0, "the student does not load by AutoModelForCausalLM")


def main() -> None:
    """Tell the story; exit 1 when a step does not do what it says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts, shorter answers, fewer steps")
    quick = parser.parse_args().quick
    start = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; children would too
    try:
        prompts = prepare(quick)
        step_probe()
        step_collect(prompts)
        step_sql()
        step_audit()
        step_train()
        step_leftovers()
    except DemoFailedError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        sys.exit(1)
    say(
        f"\nThe whole story took {time.monotonic() - start:.0f} s."
        " Type the commands again in demo/, with .venv/bin on the path."
    )


if __name__ == "__main__":
    main()
