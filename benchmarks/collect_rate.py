"""A whole minute at 600 allowed requests against a server that counts, and what follows when it lowers its limit to 300
without a word: on the true clock, through a whole run."""

import math
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

from benchmarks.storage_figures import write_section
from tests.collectors.counting import CountingServer, bursts, busiest, paced_run

PER_MINUTE, LOWERED = 600, 300
BEFORE, AFTER = 75.0, 120.0  # seconds at the first limit, and at the lowered one


def main() -> None:
    """Run both parts and write the section."""
    text = f"## The allowance on the true clock\n\n{date.today()}, x86_64 with 2 cores shared with other work.\n"
    text += _whole_minute() + _lowered()
    write_section("collect-rate", text)
    print(text)


def _whole_minute() -> str:
    with tempfile.TemporaryDirectory() as folder, CountingServer(PER_MINUTE) as server:
        paced_run(Path(folder), server, per_minute=PER_MINUTE, limit=math.ceil(PER_MINUTE * BEFORE / 60))
        times = [ask.at for ask in server.asks]
        most = busiest(times, 60.0)
        own = [ask.at for ask in server.asks if ask.prompt_number is not None]
        used = sum(at < own[0] + 60.0 for at in own)
    return (
        f"Allowed {PER_MINUTE} requests a minute: {used} in the first minute of rows ({used / PER_MINUTE:.1%}), at "
        f"most {most} in any\nsliding minute as the server counts, the probe's among them ({most / PER_MINUTE:.1%}); "
        f"{len(server.refused)} refused.\n"
    )


def _lowered() -> str:
    with tempfile.TemporaryDirectory() as folder, CountingServer(PER_MINUTE) as server:
        lowered = threading.Timer(BEFORE, lambda: setattr(server, "allowed", LOWERED))
        lowered.start()
        began = time.monotonic()
        limit = math.ceil(PER_MINUTE * BEFORE / 60 + LOWERED * (AFTER - 45) / 60)
        report = paced_run(Path(folder), server, per_minute=PER_MINUTE, limit=limit)
        lowered.join()
        sizes = bursts(server.refused)
    return (
        f"Lowered to {LOWERED} without a word after {BEFORE:.0f} s: {len(server.refused)} requests refused, in "
        f"{len(sizes)} burst{'' if len(sizes) == 1 else 's'} (of {sizes}); {report.committed} of\n{limit} rows stored "
        f"after {time.monotonic() - began:.0f} s.\n"
    )


if __name__ == "__main__":
    main()
