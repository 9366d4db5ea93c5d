"""Faults that a text shows by itself: loops, refusals, another language than was asked in.

Rules, not a model: they say what they saw, cost microseconds and need no download. What they cannot see (a false
statement, a bad argument) needs references: see profile_reference.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_PERIOD = 64
LEAST_REPEATS = 3
LEAST_SPAN = 12
"""Words (or characters, four to a word) that a repetition covers before it counts."""
LEAST_SHARE = 0.3
"""A shorter one counts when it is this share of the answer and half as long."""
LEAST_LETTERS = 60
"""Below this a language cannot be told."""
SURE = 0.99

_WORD = re.compile(r"\w+|[^\w\s]+")
_NOT = r"(?:can(?:no|['’]?)t|can not|could not|couldn['’]?t|won['’]?t|will not|wouldn['’]?t|must not|may not)"
_UNABLE = (
    r"(?:(?:am|are|'m|’m|'re|’re) (?:not |un)(?:able|allowed|permitted|comfortable|willing|programmed|designed)(?: to)?"
)
_UNABLE += r"|(?:have|must|need) to (?:decline|refuse)|must (?:decline|refuse)|(?:decline|refuse) to|['’]d rather not)"
_DO = (
    r"(?:help|assist|provid|compl[iy]|fulfil|creat|answer|shar|engag|generat|writ|discuss|support|do (?:that|this|so)|"
    r"continu|respond|offer|produc|participat|proceed|accommodat|perform)"
)
_REFUSALS = (
    rf"\b(?:i|we)\b.{{0,12}}?\b{_NOT}\b.{{0,40}}?\b{_DO}",
    rf"\b(?:i|we)(?:\b| ).{{0,12}}?{_UNABLE}.{{0,40}}?\b{_DO}",
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|virtual assistant|assistant)\b",
    r"\bi(?: am|['’]m)(?: just| only)? an? (?:ai|artificial intelligence|(?:large )?language model)\b",
    r"\b(?:against|violat\w+|breach\w*|outside) (?:my|our|the|openai\S*) .{0,30}?(?:guideline|polic|programming|rules)",
    r"\b(?:request|content|prompt|question) (?:is|was|has been|violates|goes) .{0,20}?(?:inappropriate|blocked|polic"
    r"|filtered|not (?:allowed|permitted|supported))",
    r"\b(?:unable|not able|(?:impossible|not possible) for me) to .{0,20}?"
    + _DO
    + r".{0,40}?\b(?:request|that|this|you)\b",
    r"\bich kann (?:ihnen|dir|diese|dabei|das|darauf|leider).{0,40}?nicht\b|\bals (?:ki|sprachmodell)\b",
    r"\bje ne (?:peux|suis|pourrai)\b.{0,30}?(?:pas|en mesure).{0,40}?(?:aider|fournir|répondre|faire)"
    r"|\ben tant qu['’]ia\b",
    r"\bno puedo\b.{0,30}?(?:ayudar|proporcionar|responder|cumplir|hacer)|\bcomo (?:una? )?(?:ia|modelo de lenguaje)\b",
    r"\bnon posso\b.{0,30}?(?:aiut|forni|rispond)|\bnão posso\b.{0,30}?(?:ajud|fornec|respond)",
    r"我(?:不能|无法|不便)|无法(?:提供|回答|满足)|作为(?:一个)?(?:人工智能|ai|语言模型)|申し訳(?:ありません|ございません)",
)
_REFUSAL = re.compile("|".join(f"(?:{rule})" for rule in _REFUSALS), re.IGNORECASE)
OPENING = 300
"""Characters at the start of an answer in which a refusal is looked for."""


def words(text: str) -> list[str]:
    """Words and runs of punctuation, folded to one case."""
    return _WORD.findall(text.casefold())


def loop(text: str, token_ids: NDArray[np.int32] | None = None) -> str | None:
    """What an answer repeats again and again ("… × times"); None when nothing.

    A stretch counts from three repeats in a row on, when it covers 12 words or a third of the answer. Looked for in
    words, in characters (for scripts that have no spaces) and in the tokens that were labelled.
    """
    found = words(text)
    stretch = _repetition(_numbered(found), LEAST_SPAN)
    if stretch is not None:
        start, period, times = stretch
        piece = " ".join(found[start : start + period])
        if any(c.isalnum() for c in piece) or times >= 2 * LEAST_SPAN:
            return f"{piece[:60]!r} × {times}"
    letters = text[-4000:]
    stretch = _repetition(np.frombuffer(letters.encode("utf-32-le"), dtype=np.uint32), 4 * LEAST_SPAN)
    if stretch is not None:
        start, period, times = stretch
        piece = letters[start : start + period]
        if sum(c.isalpha() for c in piece) > 1:
            return f"{piece[:60]!r} × {times}"
    if not found and token_ids is not None:
        stretch = _repetition(token_ids, LEAST_SPAN)
        return None if stretch is None else f"a stretch of {stretch[1]} tokens × {stretch[2]}"
    return None


def _numbered(found: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(word, len(numbers)) for word in found], dtype=np.int64)


def _repetition(units: NDArray[Any], span: int) -> tuple[int, int, int] | None:
    """(start, period, repeats) of the longest stretch that repeats with one period; None when none is long enough."""
    best: tuple[int, int, int] | None = None
    longest = 0
    for period in range(1, min(LONGEST_PERIOD, len(units) // LEAST_REPEATS) + 1):
        same = units[period:] == units[:-period]
        if same.sum() < (LEAST_REPEATS - 1) * period:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        which = int(lengths.argmax())
        covered = int(lengths[which]) + period
        enough = covered >= span or (covered >= span / 2 and covered >= LEAST_SHARE * len(units))
        if enough and covered >= LEAST_REPEATS * period and covered > longest:
            longest, best = covered, (int(starts[which]), period, covered // period)
    return best


def refusal(answer: str) -> str | None:
    """The words by which an answer refuses, looked for in its first 300 characters; None when it does not."""
    found = _REFUSAL.search(" ".join(answer[:OPENING].split()))
    return None if found is None else found.group(0)[:80]


def wrong_languages(prompts: Sequence[str], answers: Sequence[str]) -> list[str | None]:
    """For each answer what is wrong with its language ("de, asked in en"), or None.

    Another script than the prompt's is wrong at once. Within a script an answer of 60 letters or more is wrong when
    the identifier (py3langid, 97 languages) is 99 % sure of a language, holds the prompt's for less than 1 % likely,
    and the answer looks like prose. Where a prompt is too short to tell, the table's most frequent language is asked.
    """
    identify = _identifier()
    languages = [identify(answer) if _is_prose(answer) else None for answer in answers]
    asked = [identify(prompt) if _is_prose(prompt) else None for prompt in prompts]
    usual = Counter(found[0] for found in languages if found is not None)
    common = usual.most_common(1)[0][0] if usual else None
    scripts = Counter(found for answer in answers if (found := script(answer)) is not None)
    result: list[str | None] = []
    for prompt, answer, language, wanted in zip(prompts, answers, languages, asked, strict=True):
        expected = wanted[0] if wanted is not None and wanted[1][wanted[0]] >= SURE else common
        problem = _wrong_script(prompt, answer, scripts)
        if problem is None and language is not None and expected is not None:
            best, chances = language
            if best != expected and chances[best] >= SURE and chances.get(expected, 0.0) < 1 - SURE:
                problem = f"{best}, {'asked in' if wanted is not None else 'most are'} {expected}"
        result.append(problem)
    return result


def _wrong_script(prompt: str, answer: str, scripts: Counter[str]) -> str | None:
    found = script(answer)
    wanted = script(prompt) or (scripts.most_common(1)[0][0] if scripts else None)
    if found is None or wanted is None or found == wanted:
        return None
    return f"{found} script, asked in {wanted}"


def script(text: str) -> str | None:
    """The script that at least 60 % of the letters are in (LATIN, CYRILLIC, HAN …); None below 12 letters."""
    names = [_script_of(c) for c in text[:2000] if c.isalpha()]
    if len(names) < 12:
        return None
    best, count = Counter(names).most_common(1)[0]
    return best if count >= 0.6 * len(names) else None


@cache
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").split(" ")[0].split("-")[0]
    return "CJK" if name in ("CJK", "HIRAGANA", "KATAKANA") else name


def _is_prose(text: str) -> bool:
    """Enough letters to tell a language, and not code: most characters are letters and blanks."""
    letters = sum(c.isalpha() for c in text)
    return letters >= LEAST_LETTERS and letters + text.count(" ") >= 0.85 * len(text)


def _identifier() -> Any:
    """text → (language, chances by language)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped,unused-ignore]

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> tuple[str, dict[str, float]]:
        chances = {str(language): float(chance) for language, chance in model.rank(text)}
        return max(chances, key=chances.__getitem__), chances

    return identify
