"""The teacher: a small network on handwritten digits, which has seen all ten classes. Made at its first import."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

PIXELS, CLASSES = load_digits(return_X_y=True)
TEST = np.arange(len(CLASSES)) % 5 == 4
"""A fifth of the images, which neither teacher nor student learns from."""

_MODEL = MLPClassifier((128,), max_iter=400, random_state=0, alpha=0.1).fit(PIXELS[~TEST] / 16, CLASSES[~TEST])


def probabilities(texts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """P(label | image) for images that are JSON lists of 64 grey values, [texts, labels], at temperature 1."""
    images = np.array([json.loads(text) for text in texts]) / 16
    return _MODEL.predict_proba(images)[:, [int(label) for label in labels]]
