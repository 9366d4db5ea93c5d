"""Can all obligations be met at once, and if not, which teachers must go?

Claims only ever add up (merge.py), so a set of teachers that clears stays clear when one is taken out, and the smallest
set to drop is a hitting set: brute force over at most 20 teachers is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from policies.codes import ways_out
from policies.decision import VERDICTS, Drop, Reason, Verdict
from policies.licences import traits
from policies.merge import Claims, merge, worst
from policies.names import bears, common_prefix

MOST_TEACHERS = 20
"""2^20 subsets take seconds; more conflicting teachers than that are told without a set to drop."""


@dataclass(frozen=True)
class Share:
    """One teacher's part: what its terms claim and how much of the data is its own."""

    claims: Claims
    rows: int = 0
    tokens: int = 0


def conflicts(claims: Claims) -> Iterator[Reason]:
    """Why no student at all could satisfy the claims together, whatever its name, licence and initial weights."""
    prefix = common_prefix(claims.name_prefixes)
    if prefix is None:
        asked = " and ".join(repr(p) for p in sorted(claims.name_prefixes))
        yield _refusal("NAME_PREFIX_UNSATISFIABLE", f"No name begins with {asked}")
    for mark in sorted(claims.marks):
        if prefix and bears(prefix, mark):
            gist = f"A name that begins with {prefix!r} bears the forbidden mark {mark!r}"
            yield _refusal("NAME_PREFIX_UNSATISFIABLE", gist)
    if claims.families is not None and not claims.families:
        yield _refusal("SAME_FAMILY_ONLY", "No initial weights belong to all the families that these terms ask for")
    if len(claims.share_alike) > 1:
        asked = " and ".join(sorted(claims.share_alike))
        yield _refusal("STUDENT_LICENCE_CONFLICT", f"The student cannot be under {asked} at once")
    copyleft = sorted(key for key in claims.share_alike if "share_alike" in (traits(key) or ()))
    if copyleft and claims.use_restrictions:
        gist = f"{copyleft[0]} forbids the use restrictions that {', '.join(sorted(claims.use_restrictions))} demands"
        yield _refusal("STUDENT_LICENCE_CONFLICT", gist)


def _refusal(code: str, gist: str) -> Reason:
    return Reason(code=code, verdict="deny", gist=gist, fix=ways_out(code))


def outcome(claims: Claims) -> Verdict:
    """The verdict of claims together, their conflicts included."""
    return worst([claims.verdict, *(reason.verdict for reason in conflicts(claims))])


def smallest_drop(shares: Mapping[str, Share]) -> Drop | None:
    """The smallest set of teachers without which the rest clears, of the smallest those with the fewest rows.

    None when everything clears already, when nothing would be left, or when more than MOST_TEACHERS are to be tried.
    """
    if _clears(shares, shares):
        return None
    lost = tuple(sorted(label for label, share in shares.items() if not _clears((label,), shares)))
    rest = sorted(set(shares) - set(lost))
    if len(rest) > MOST_TEACHERS:
        return None
    for size in range(len(rest)):
        sets = [s for s in combinations(rest, size) if _clears([r for r in rest if r not in s], shares)]
        if sets:
            chosen = min(sets, key=lambda s: (sum(shares[t].rows for t in s), sum(shares[t].tokens for t in s), s))
            return _drop((*lost, *chosen), shares)
    return None


def _clears(labels: Sequence[str] | Mapping[str, Share], shares: Mapping[str, Share]) -> bool:
    return VERDICTS.index(outcome(merge(shares[label].claims for label in labels))) <= VERDICTS.index("conditional")


def _drop(labels: tuple[str, ...], shares: Mapping[str, Share]) -> Drop:
    rows, tokens = (sum(getattr(shares[label], what) for label in labels) for what in ("rows", "tokens"))
    all_rows, all_tokens = (sum(getattr(share, what) for share in shares.values()) for what in ("rows", "tokens"))
    rest = merge(share.claims for label, share in shares.items() if label not in labels)
    return Drop(
        teachers=tuple(sorted(labels)),
        rows=rows,
        tokens=tokens,
        share_of_rows=rows / all_rows if all_rows else None,
        share_of_tokens=tokens / all_tokens if all_tokens else None,
        verdict=outcome(rest),
    )
