"""Write prompts.jsonl: the training images as JSON lists of 64 grey values, the true class as the reference."""

import json
from pathlib import Path

from teacher import CLASSES, PIXELS, TEST

with Path("prompts.jsonl").open("w", encoding="utf-8") as file:
    for i in range(len(CLASSES)):
        if not TEST[i]:
            line = {
                "id": f"digit-{i}",
                "prompt": json.dumps(PIXELS[i].astype(int).tolist()),
                "reference": str(CLASSES[i]),
            }
            file.write(json.dumps(line) + "\n")
