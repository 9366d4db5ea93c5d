"""Whether another process works at a run: asked before the slow imports, so that it is told within a second."""

from collectors.config import RunConfig
from storage.errors import RunHeld
from storage.locks import held_by


def check_not_held(config: RunConfig) -> None:
    """Raise RunHeld that names the process which holds this run."""
    holder = held_by(config.table / "journal" / f"{config.run_id}.lock")
    if holder is not None:
        raise RunHeld(f"Run {config.run_id} is already running: {holder}. Wait for it, or stop it first.")
