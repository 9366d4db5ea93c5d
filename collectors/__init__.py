"""potstill room: collectors. Teachers are asked within their limits and their terms, and nothing paid for is lost.

Names are imported when they are first used, so that importing the room costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collectors.card import EndpointCard as EndpointCard
    from collectors.config import RunConfig as RunConfig
    from collectors.config import read_run as read_run
    from collectors.dry_run import Estimate as Estimate
    from collectors.dry_run import estimate as estimate
    from collectors.emit import emit_schedule as emit_schedule
    from collectors.errors import CollectError as CollectError
    from collectors.reparse import reparse_table as reparse_table
    from collectors.report import RunReport as RunReport
    from collectors.run import collect as collect
    from collectors.run import probe_endpoints as probe_endpoints
    from collectors.schedule import run_schedule as run_schedule

__all__ = [
    "CollectError",
    "EndpointCard",
    "Estimate",
    "RunConfig",
    "RunReport",
    "collect",
    "emit_schedule",
    "estimate",
    "probe_endpoints",
    "read_run",
    "reparse_table",
    "run_schedule",
]

_HOME = {
    "CollectError": "collectors.errors",
    "EndpointCard": "collectors.card",
    "Estimate": "collectors.dry_run",
    "RunConfig": "collectors.config",
    "RunReport": "collectors.report",
    "collect": "collectors.run",
    "emit_schedule": "collectors.emit",
    "estimate": "collectors.dry_run",
    "probe_endpoints": "collectors.run",
    "read_run": "collectors.config",
    "reparse_table": "collectors.reparse",
    "run_schedule": "collectors.schedule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'collectors' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
