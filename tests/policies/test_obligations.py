"""Can all obligations be met at once, and which teachers must go if not."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from policies.decision import VERDICTS
from policies.merge import Claims, merge
from policies.names import bears, begins_with, common_prefix
from policies.obligations import MOST_TEACHERS, Share, conflicts, outcome, smallest_drop
from tests.policies.strategies import _claims


def prefixed(*prefixes: str) -> Claims:
    return Claims(name_prefixes=frozenset(prefixes))


@pytest.mark.parametrize(
    ("prefixes", "common"),
    [
        ([], ""),
        (["Llama"], "Llama"),
        (["Llama", "Llama 3"], "Llama 3"),
        (["Llama-3", "Llama 3", "Llama"], "Llama-3"),
        (["Llama-3", "Llama 3 x"], "Llama 3 x"),
        (["Llama", "glm-4"], None),
        (["Llama 3", "Llama 4"], None),
    ],
)
def test_the_longest_prefix_holds_if_the_others_begin_it(prefixes: list[str], common: str | None) -> None:
    found = common_prefix(prefixes)
    assert (found is None) == (common is None)
    assert found is None or (begins_with(found, common or "") and len(found) == len(common or ""))


@pytest.mark.parametrize(
    ("name", "prefix", "begins"),
    [
        ("Llama-acme", "Llama", True),
        ("acme/Llama_3_x", "Llama 3", True),
        ("Llama 3 acme", "Llama-3", True),
        ("llama-acme", "Llama", False),
        ("acme-Llama", "Llama", False),
        ("Llama", "Llama 3", False),
    ],
)
def test_beginnings(name: str, prefix: str, begins: bool) -> None:
    assert begins_with(name, prefix) is begins


def test_marks_are_found_in_any_case_and_not_in_the_organisation() -> None:
    assert bears("acme-deepSEEK-7b", "DeepSeek")
    assert bears("deep-seek", "deep seek")
    assert bears("acme-Deep_Seek-7b", "DeepSeek")
    assert not bears("DeepSeek/acme-7b", "DeepSeek")


@pytest.mark.parametrize(
    ("claims", "codes"),
    [
        (Claims(), []),
        (prefixed("Llama", "Llama 3"), []),
        (prefixed("Llama", "glm-4"), ["NAME_PREFIX_UNSATISFIABLE"]),
        (Claims(name_prefixes=frozenset({"Llama"}), marks=frozenset({"llama"})), ["NAME_PREFIX_UNSATISFIABLE"]),
        (Claims(name_prefixes=frozenset({"Llama"}), marks=frozenset({"DeepSeek"})), []),
        (Claims(families=frozenset({"dbrx"})), []),
        (Claims(families=frozenset()), ["SAME_FAMILY_ONLY"]),
        (Claims(share_alike=frozenset({"LicenseRef-a"})), []),
        (Claims(share_alike=frozenset({"LicenseRef-a", "LicenseRef-b"})), ["STUDENT_LICENCE_CONFLICT"]),
        (Claims(share_alike=frozenset({"LicenseRef-a"}), use_restrictions=frozenset({"rail"})), []),
        (Claims(share_alike=frozenset({"GPL-3.0-only"})), []),
        (
            Claims(share_alike=frozenset({"CC-BY-SA-4.0"}), use_restrictions=frozenset({"rail"})),
            ["STUDENT_LICENCE_CONFLICT"],
        ),
    ],
)
def test_conflicts(claims: Claims, codes: list[str]) -> None:
    reasons = list(conflicts(claims))
    assert [reason.code for reason in reasons] == codes
    assert all(reason.verdict == "deny" and reason.fix for reason in reasons)
    assert outcome(claims) == ("deny" if codes else "allow")


def test_what_conflicts_say() -> None:
    mark = Claims(name_prefixes=frozenset({"Llama"}), marks=frozenset({"llama"}))
    rail = Claims(share_alike=frozenset({"CC-BY-SA-4.0"}), use_restrictions=frozenset({"b@1", "a@1"}))
    both = Claims(share_alike=frozenset({"LicenseRef-a", "LicenseRef-b"}))
    assert [r.gist for c in (prefixed("Llama", "glm-4"), mark, Claims(families=frozenset()), both, rail)
            for r in conflicts(c)] == [
        "No name begins with 'Llama' and 'glm-4'",
        "A name that begins with 'Llama' bears the forbidden mark 'llama'",
        "No initial weights belong to all the families that these terms ask for",
        "The student cannot be under LicenseRef-a and LicenseRef-b at once",
        "CC-BY-SA-4.0 forbids the use restrictions that a@1, b@1 demands",
    ]  # fmt: skip


def test_nothing_to_drop_when_all_clears_and_nothing_left_when_all_must_go() -> None:
    assert smallest_drop({"a": Share(Claims(verdict="conditional"))}) is None
    assert smallest_drop({"a": Share(Claims(verdict="deny")), "b": Share(Claims(verdict="review"))}) is None


def test_the_refused_go_first_then_the_fewest_rows_of_the_smallest_sets() -> None:
    shares = {
        "banned": Share(Claims(verdict="deny"), rows=1, tokens=4),
        "glm": Share(prefixed("glm-4"), rows=30, tokens=16),
        "llama": Share(prefixed("Llama"), rows=20, tokens=80),
        "plain": Share(Claims(verdict="conditional"), rows=49, tokens=100),
    }
    drop = smallest_drop(shares)
    assert drop is not None
    assert drop.teachers == ("banned", "llama")
    assert (drop.rows, drop.tokens, drop.share_of_rows, drop.share_of_tokens) == (21, 84, 0.21, 0.42)
    assert drop.verdict == "conditional"


def test_equal_rows_are_told_apart_by_tokens_then_by_name() -> None:
    shares = {"a": Share(prefixed("x"), rows=1, tokens=9), "b": Share(prefixed("y"), rows=1, tokens=3)}
    drop = smallest_drop(shares)
    assert drop is not None and drop.teachers == ("b",)
    same = {"b": Share(prefixed("y")), "a": Share(prefixed("x"))}
    drop = smallest_drop(same)
    assert drop is not None and drop.teachers == ("a",)
    assert (drop.share_of_rows, drop.share_of_tokens) == (None, None)


def test_brute_force_stops_at_its_limit() -> None:
    many = {f"t{i:02}": Share(prefixed(f"p{i:02}")) for i in range(MOST_TEACHERS + 1)}
    assert smallest_drop(many) is None
    shared = {f"t{i:02}": Share(prefixed("p")) for i in range(MOST_TEACHERS - 1)} | {"odd": Share(prefixed("q"))}
    drop = smallest_drop(shared)
    assert drop is not None and drop.teachers == ("odd",)


def test_the_set_is_the_smallest_there_is() -> None:
    for seed in range(300):
        random = Random(seed)
        shares = {f"t{i}": Share(_claims(random), rows=random.randrange(9)) for i in range(random.randrange(2, 6))}
        clearing = [
            kept
            for size in range(len(shares), 0, -1)
            for kept in combinations(sorted(shares), size)
            if VERDICTS.index(outcome(merge(shares[t].claims for t in kept))) <= 1
        ]
        drop = smallest_drop(shares)
        if not clearing or len(clearing[0]) == len(shares):
            assert drop is None
            continue
        assert drop is not None
        kept = tuple(sorted(set(shares) - set(drop.teachers)))
        assert len(kept) == len(clearing[0])
        best = min(sum(s.rows for t, s in shares.items() if t not in k) for k in clearing if len(k) == len(kept))
        assert drop.rows == best
