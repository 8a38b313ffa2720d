"""Made embeddings: unit rows as float16, in clusters, with planted duplicates."""

import faiss
import numpy as np
import pytest


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="session")
def vectors():
    """1,200 rows of width 48 around 40 centres; rows 1000 to 1199 are copies of 0 to 199 at a cosine of about 0.96."""
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((40, 48))).astype(np.float32)
    noise = unit(rng.standard_normal((1000, 48))).astype(np.float32)
    originals = unit(0.5 * centres[rng.integers(40, size=1000)] + 0.85 * noise).astype(np.float32)
    copies = originals[:200] + 0.3 * unit(rng.standard_normal((200, 48))).astype(np.float32)
    return np.concatenate([unit(originals), unit(copies)])


@pytest.fixture
def threads():
    """Sets the threads of faiss, and puts them back."""
    before = faiss.omp_get_max_threads()
    yield faiss.omp_set_num_threads
    faiss.omp_set_num_threads(before)
