"""potstill room: policies. May this data train that student? Terms documents as data, verdicts with reasons.

Names are loaded on use, so that importing the room costs nothing. `policies.evaluate` may be called by either name:
the function and its module share it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.binding import binding_terms as binding_terms
    from policies.decision import EXIT_CODES as EXIT_CODES
    from policies.decision import Decision as Decision
    from policies.documents import Bundle as Bundle
    from policies.documents import load_bundle as load_bundle
    from policies.documents import read_bundle as read_bundle
    from policies.errors import PolicyError as PolicyError
    from policies.evaluate import evaluate as evaluate
    from policies.identity import Material as Material
    from policies.identity import Teacher as Teacher
    from policies.settings import ConfigError as ConfigError
    from policies.settings import LocalPath as LocalPath
    from policies.settings import Settings as Settings
    from policies.settings import read_toml as read_toml
    from policies.use import Use as Use
    from policies.waivers import Waiver as Waiver

_HOME = {
    "Bundle": "policies.documents",
    "ConfigError": "policies.settings",
    "Decision": "policies.decision",
    "EXIT_CODES": "policies.decision",
    "LocalPath": "policies.settings",
    "Material": "policies.identity",
    "PolicyError": "policies.errors",
    "Settings": "policies.settings",
    "Teacher": "policies.identity",
    "Use": "policies.use",
    "Waiver": "policies.waivers",
    "binding_terms": "policies.binding",
    "evaluate": "policies.evaluate",
    "load_bundle": "policies.documents",
    "read_bundle": "policies.documents",
    "read_toml": "policies.settings",
}

__all__ = [
    "EXIT_CODES",
    "Bundle",
    "ConfigError",
    "Decision",
    "LocalPath",
    "Material",
    "PolicyError",
    "Settings",
    "Teacher",
    "Use",
    "Waiver",
    "binding_terms",
    "evaluate",
    "load_bundle",
    "read_bundle",
    "read_toml",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
