"""The child process of the embedded teacher: llama.cpp's own server, which lives exactly as long as its parent's pipe.

Run as a script, never imported. It reads its settings as one line of JSON from stdin, writes its address as one line to
stdout, and ends when stdin ends, which the kernel sees to even when the parent is killed.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with_parent(signal_number: int) -> None:
    """Loading a model holds the interpreter, so the end of stdin would go unseen: on Linux the kernel steps in."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def main() -> None:
    """Serve until stdin ends. What llama.cpp says goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it may want to finish what is in flight
    _die_with_parent(signal.SIGKILL)
    with os.fdopen(os.dup(1), "w") as to_parent:
        os.dup2(2, 1)
        settings = json.loads(sys.stdin.readline())
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = settings["gguf"]
        params.model_alias = {settings["name"]}  # else every answer names the path
        params.n_ctx = settings["context_length"] * settings["slots"]
        params.n_parallel = settings["slots"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.cors_origins = ""  # no web page may ask it
        params.ui = params.endpoint_slots = params.warmup = False
        params.fit_params = False  # the context that was asked for, or an error
        params.cache_prompt = False  # a cached prefix changes the numbers a little
        params.cache_ram_mib = 0
        params.n_ctx_checkpoints = 0  # a prompt split for a checkpoint has other numbers than a whole one
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            sys.exit(str(error))
        _die_with_parent(0)  # it follows the thread that started us, which may end once it has our address
        to_parent.write(server.listening_address + "\n")
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
