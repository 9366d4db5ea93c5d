"""Short reviews, half of them good (writes prompts.jsonl)."""

import itertools
import json
from pathlib import Path

THINGS = ["soup", "film", "hotel", "book", "service", "concert"]
GOOD = ["wonderful and I would come back", "a joy from start to end", "great value", "the best this year"]
BAD = ["terrible and I left early", "a waste of money", "cold, dull and overpriced", "the worst this year"]

with Path("prompts.jsonl").open("w", encoding="utf-8") as file:
    for thing, (mood, said) in itertools.product(THINGS, [*(("good", s) for s in GOOD), *(("bad", s) for s in BAD)]):
        for number, beginning in enumerate(("The {} was {}.", "We found the {} {}.", "In short, the {}: {}.")):
            text = beginning.format(thing, said)
            line = {"id": f"{thing}-{mood}-{number}-{said[:12]}", "text": text, "reference": f" {mood}"}
            file.write(json.dumps(line) + "\n")
