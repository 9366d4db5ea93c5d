"""Near-duplicates: texts whose sets of three-word pieces are nearly the same, found by MinHash and then compared.

MinHash finds the pairs in one pass over any number of texts; what is reported was compared exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.profile_text import words

THRESHOLD = 0.8
PERMUTATIONS = 128
LEAST_WORDS = 8
"""Short texts are alike by chance: "Yes." is no duplicate."""
PIECE = 3


def twins(texts: Sequence[str], of: Sequence[str]) -> list[int | None]:
    """For each text the earliest one that it nearly repeats (Jaccard of word trigrams ≥ 0.8), or None.

    `of` names what each text belongs to; two texts of the same thing (samples of one prompt) are no twins.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD - 0.1, num_perm=PERMUTATIONS)
    pieces = [_pieces(text) for text in texts]
    exact: dict[frozenset[str], int] = {}
    found: list[int | None] = []
    for number, piece in enumerate(pieces):
        if piece is None:
            found.append(None)
            continue
        same = exact.get(piece)
        if same is not None:
            found.append(same if of[same] != of[number] else None)
            continue
        exact[piece] = number
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([part.encode() for part in piece])
        near = [n for n in sorted(index.query(sketch)) if of[n] != of[number]]
        found.append(next((n for n in near if _jaccard(piece, pieces[n]) >= THRESHOLD), None))
        index.insert(number, sketch)
    return found


def _pieces(text: str) -> frozenset[str] | None:
    found = words(text)
    if len(found) < LEAST_WORDS:
        joined = "".join(text.split())
        # a script without spaces has few "words": take pieces of five characters
        return frozenset(joined[i : i + 5] for i in range(len(joined) - 4)) if len(joined) >= 4 * LEAST_WORDS else None
    return frozenset(" ".join(found[i : i + PIECE]) for i in range(len(found) - PIECE + 1))


def _jaccard(one: frozenset[str], other: frozenset[str] | None) -> float:
    return 0.0 if other is None else len(one & other) / len(one | other)
