"""A grid of topics and readers: the first words of 24 small textbooks (writes prompts.jsonl)."""

import itertools
import json
from pathlib import Path

TOPICS = ["the water cycle", "magnets", "fractions", "how bread rises"]
READERS = ["children", "students", "teachers"]
BEGINNINGS = ["Lesson 1: {topic}, for {reader}.\n\nWe begin with", "{topic} explained to {reader}.\n\nFirst of all,"]

grid = itertools.product(TOPICS, READERS, BEGINNINGS)
with Path("prompts.jsonl").open("w", encoding="utf-8") as file:
    for number, (topic, reader, beginning) in enumerate(grid):
        prompt = beginning.format(topic=topic[0].upper() + topic[1:] if beginning[0] == "{" else topic, reader=reader)
        file.write(json.dumps({"id": f"lesson-{number:02}", "prompt": prompt, "domain": topic}) + "\n")
