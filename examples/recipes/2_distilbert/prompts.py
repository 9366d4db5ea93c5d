"""Texts of a small grammar, in which what a word may be depends on the others (writes prompts.jsonl)."""

import json
import random
from pathlib import Path

# who → what they do, with what, where; the first of a list is the likeliest
WORLD = {
    "baker": ("bakes sells cuts", "bread cake rolls", "shop kitchen market"),
    "farmer": ("grows sells waters", "wheat apples beans", "field market barn"),
    "sailor": ("mends sells hauls", "nets fish ropes", "harbour market boat"),
    "teacher": ("reads explains gives", "books maps sums", "school library hall"),
    "smith": ("forges mends sells", "nails tools knives", "forge barn market"),
    "gardener": ("waters plants grows", "roses beans trees", "garden field park"),
}
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"]
TIMES = ["today", "now", "often", "again"]
random.seed(0)


def pick(words: str) -> str:
    return random.choices(words.split(), (6, 3, 1))[0]


with Path("prompts.jsonl").open("w", encoding="utf-8") as file:
    for number in range(300):
        name, who = random.choice(NAMES), random.choice(list(WORLD))
        do, what, where = (pick(words) for words in WORLD[who])
        text = f"{name} the {who} {do} {what} in the {where} {random.choice(TIMES)}. "
        text += f"The {who} {do} {pick(WORLD[who][1])} for {random.choice(NAMES)}."
        file.write(json.dumps({"id": f"text-{number:03}", "prompt": text}) + "\n")
