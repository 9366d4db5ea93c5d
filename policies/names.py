"""Naming duties: does a name begin with what a licence asks, does it bear a mark that it may not?

Hyphen, underscore and space count as one, because hubs allow no spaces where licences write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", "-", name.rpartition("/")[2])


def begins_with(name: str, prefix: str) -> bool:
    """Whether a model's name, without its organisation, begins with the prefix, in the case that the licence writes."""
    return _plain(name).startswith(_plain(prefix))


def bears(name: str, mark: str) -> bool:
    """Whether a name contains a mark, in any case and however it is cut into words."""
    return _run_together(mark) in _run_together(name)


def _run_together(name: str) -> str:
    return _plain(name).replace("-", "").casefold()


def common_prefix(prefixes: Iterable[str]) -> str | None:
    """The shortest text that a name can begin with to satisfy all: the longest prefix, if each other one begins it.

    "" when nothing is asked, None when no name can satisfy all.
    """
    asked = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    if not asked:
        return ""
    longest = asked[-1]
    return longest if all(begins_with(longest, prefix) for prefix in asked) else None
