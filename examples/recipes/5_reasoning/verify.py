"""Which answers are right: sums by their numbers, functions by running them. Writes wrong.txt, a row's key a line.

Code from a model runs in a child process: no network, two seconds, 256 MB, and it ends at the first thing that would
reach out of it (a file, a process). That keeps mistakes in, not an attacker: for those take a virtual machine.
"""

import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from storage import sql

SECONDS, MEMORY = 2, 256 << 20
APART = ["unshare", "--net", "--map-root-user"]
"""Linux: the child has no network, and no rights outside."""
GUARD = """
def guard():
    import os, sys
    end, listed = os._exit, ("os.listdir", "os.scandir")
    apart = {"os", "subprocess", "socket", "shutil", "ctypes", "signal", "tempfile", "glob", "pty", "fcntl"}
    def hook(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes or event.split(".")[0] in apart and event not in listed:
            end(1)
    sys.addaudithook(hook)
guard()
del guard
"""
"""Python tells a hook before it touches the system: only what an import needs is let through."""


def limit() -> None:
    """What the child may use; runs in it before its program."""
    for what, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(what, (most, most))


def runs_true(program: str) -> bool:
    """Whether a program ends with exit 0 in its sandbox."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*APART, sys.executable, "-I", "-S", "-c", GUARD + program]
        try:
            done = subprocess.run(
                command, cwd=folder, env={}, timeout=5 * SECONDS, preexec_fn=limit,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def sum_is_right(completion: str, reference: str) -> bool:
    """The trace says «… The answer is N.», and both its numbers are the reference."""
    found = re.match(r"\s*(\d+)\. The answer is (\d+)\b", completion)
    return found is not None and set(found.groups()) == {reference}


def function_is_right(prompt: str, completion: str, test: str) -> bool:
    """The function that the prompt began and the answer's first line ended passes its test."""
    head = prompt[prompt.rindex("def ") :]
    return runs_true(f"{head}{completion.splitlines()[0] if completion else ''}\nassert {test}")


def main() -> None:
    if shutil.which(APART[0]) is None or not runs_true("assert True"):
        sys.exit("verify.py runs a model's code, and this machine does not let `unshare` keep it from the network")
    query = "SELECT key, prompt, completion, reference, domain FROM soft_labels ORDER BY key"
    wrong, counts = [], Counter[tuple[str, bool]]()
    for row in sql("soft_labels", query).to_pylist():
        if row["domain"] == "sums":
            right = sum_is_right(row["completion"], row["reference"])
        else:
            right = function_is_right(row["prompt"], row["completion"], row["reference"])
        counts[row["domain"], right] += 1
        if not right:
            wrong.append(row["key"])
    Path("wrong.txt").write_text("".join(f"{key}\n" for key in wrong), encoding="utf-8")
    for domain in ("sums", "python"):
        print(f"{domain}: {counts[domain, True]} right, {counts[domain, False]} wrong")


if __name__ == "__main__":
    main()
