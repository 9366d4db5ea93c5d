"""What licences of prompts and of students mean for a use: SPDX expressions read by license-expression.

Only licences whose family is known here count; anything else is unknown, and unknown means no.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

Trait = Literal["attribution", "share_alike", "noncommercial", "no_derivatives"]

_OPEN = ("CC0-1.0", "CC-PDDC", "PDDL-1.0", "Unlicense", "0BSD", "MIT-0", "LicenseRef-own")
_ATTRIBUTION = (
    *("CC-BY-*", "ODC-By-*", "CDLA-Permissive-*", "C-UDA-1.0"),
    *("MIT", "ISC", "Apache-2.0", "Zlib", "BSD-2-Clause*", "BSD-3-Clause*", "BSL-1.0", "PSF-2.0"),
)
_COPYLEFT = ("ODbL-*", "CDLA-Sharing-*", "GPL-*", "LGPL-*", "AGPL-*", "GFDL-*", "MPL-*", "EPL-*", "EUPL-*")
_FREE: frozenset[Trait] = frozenset()
_PATTERNS: tuple[tuple[str, frozenset[Trait]], ...] = (
    *((key, _FREE) for key in _OPEN),
    ("CC-BY-NC-ND-*", frozenset(("attribution", "noncommercial", "no_derivatives"))),
    ("CC-BY-NC-SA-*", frozenset(("attribution", "noncommercial", "share_alike"))),
    ("CC-BY-NC-*", frozenset(("attribution", "noncommercial"))),
    ("CC-BY-ND-*", frozenset(("attribution", "no_derivatives"))),
    ("CC-BY-SA-*", frozenset(("attribution", "share_alike"))),
    *((key, frozenset[Trait](("attribution",))) for key in _ATTRIBUTION),
    *((key, frozenset[Trait](("attribution", "share_alike"))) for key in _COPYLEFT),
)
"""The first pattern that fits decides. `LicenseRef-own` marks prompts of one's own making."""


class LicenceTree:
    """A licence expression: a leaf with its key, or an operator over parts."""

    def __init__(
        self, operator: Literal["leaf", "AND", "OR"], key: str = "", parts: Iterable[LicenceTree] = ()
    ) -> None:
        self.operator = operator
        self.key = key
        self.parts = tuple(parts)

    def leaves(self) -> tuple[str, ...]:
        """The keys that occur, in order."""
        return (self.key,) if self.operator == "leaf" else tuple(k for part in self.parts for k in part.leaves())


@lru_cache(maxsize=1)
def _licensing() -> Any:
    from license_expression import get_spdx_licensing  # reads an index of 2,000 licences: only when one is judged

    return get_spdx_licensing()


@lru_cache(maxsize=256)
def parse(expression: str) -> LicenceTree | None:
    """The tree of an SPDX expression, None when it is not one. Keys keep their SPDX spelling where SPDX knows them."""
    from license_expression import ExpressionError

    try:
        parsed = _licensing().parse(expression)
    except ExpressionError:
        return None
    except AttributeError:  # what the library raises for some malformed text
        return None
    return None if parsed is None else _tree(parsed)


def _tree(node: Any) -> LicenceTree:
    if getattr(node, "args", ()):
        return LicenceTree(node.operator.strip(), parts=[_tree(part) for part in node.args])
    key = node.license_symbol.key if hasattr(node, "license_symbol") else node.key
    return LicenceTree("leaf", str(key))


def traits(key: str) -> frozenset[Trait] | None:
    """What one licence asks, by its SPDX id; None for a licence that is not known here."""
    for pattern, found in _PATTERNS:
        if fnmatch.fnmatchcase(key, pattern):
            return found
    return None


def is_standard(key: str) -> bool:
    """Whether SPDX lists the licence: a text that is fixed and cannot carry another's use restrictions."""
    symbol = _licensing().known_symbols.get(key)
    return symbol is not None and not key.startswith("LicenseRef-")


def carries_restrictions(licence: str) -> bool | None:
    """Whether a student's licence can pass a teacher's use restrictions on, enforceably.

    A licence of one's own (LicenseRef-…) can, also beside a permissive one (AND). A standard text cannot, and a
    copyleft one forbids further restrictions even beside them. None when the text is no SPDX expression that is known.
    """
    tree = parse(licence)
    return None if tree is None else _carries(tree)


def _carries(tree: LicenceTree) -> bool | None:
    if tree.operator == "leaf":
        if tree.key.startswith("LicenseRef-"):
            return True
        return False if is_standard(tree.key) else None
    parts = [_carries(part) for part in tree.parts]
    if tree.operator == "OR":  # whoever receives it chooses, so every branch must carry them
        return False if False in parts else None if None in parts else True
    if any("share_alike" in (traits(key) or ()) for key in tree.leaves()):
        return False
    return True if True in parts else None if None in parts else False


def under(licence: str, document_licence: str | None, document_id: str) -> bool:
    """Whether a student's licence is, or includes, a document's own: by its SPDX or LicenseRef id."""
    tree = parse(licence)
    if tree is None:
        return False
    names = {f"licenseref-{document_id}".casefold()}
    if document_licence:
        names.add(document_licence.casefold())
    return any(key.casefold() in names for key in tree.leaves())
