"""Sums in words, and Python functions to be written; what is right is known (writes prompts.jsonl)."""

import itertools
import json
from pathlib import Path

THINGS = [("Tom", "apples"), ("Mia", "pens"), ("Ali", "books")]
SUM = "{name} has {a} {thing} and gets {b} more. {a} + {b} ="
SUM_EXAMPLE = """Ann has 4 eggs and gets 3 more. 4 + 3 = 7. The answer is 7.

Ben has 6 cups and gets 2 more. 6 + 2 = 8. The answer is 8.

"""
FUNCTION_EXAMPLE = "def add_one(x):\n    return x + 1\n\n\ndef double(x):\n    return x * 2\n\n\n"
# head → a Python expression that is true of a right function
FUNCTIONS = {
    "def square(x):": "square(3) == 9 and square(-2) == 4",
    "def negate(x):": "negate(5) == -5 and negate(-1) == 1",
    "def add(a, b):": "add(2, 3) == 5 and add(-1, 1) == 0",
    "def multiply(a, b):": "multiply(2, 3) == 6 and multiply(0, 9) == 0",
    "def subtract(a, b):": "subtract(5, 3) == 2 and subtract(0, 1) == -1",
    "def is_even(n):": "is_even(4) and not is_even(7)",
    "def first(items):": "first([7, 8]) == 7",
    "def length(items):": "length([1, 2, 3]) == 3",
}

lines = []
for (name, thing), a, b in itertools.product(THINGS, (2, 3, 5), (1, 2, 4)):
    prompt = SUM_EXAMPLE + SUM.format(name=name, thing=thing, a=a, b=b)
    lines.append({"id": f"sum-{name}-{a}-{b}", "prompt": prompt, "domain": "sums", "reference": str(a + b)})
for head, test in FUNCTIONS.items():
    prompt = f"{FUNCTION_EXAMPLE}{head}\n    return"
    lines.append({"id": head[4 : head.index("(")], "prompt": prompt, "domain": "python", "reference": test})
Path("prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
