"""What the store's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore

MakeFirings = Callable[..., Firings]


@pytest.fixture
def store(tmp_path: Path) -> LakeStore:
    """An empty lake."""
    return LakeStore.create(tmp_path / "lake")


@pytest.fixture(scope="session")
def make_firings() -> MakeFirings:
    """Make n distinct firings in random order, with many equal activations."""

    def make(n: int, *, seed: int = 0, width: int = 40, first_context: int = 0) -> Firings:
        rng = np.random.default_rng(seed)
        n_positions = 16
        n_contexts = max(1, -(-4 * n // (width * n_positions)))
        cells = rng.choice(n_contexts * n_positions * width, n, replace=False)
        token, feature = np.divmod(cells, width)
        context, position = np.divmod(token, n_positions)
        return Firings(
            (context + first_context).astype(np.int64),
            position.astype(np.int32),
            feature.astype(np.int32),
            rng.choice([0.004, 0.5, 1.0, 3.14159, 70000.0], n).astype(np.float32),
            np.where(position == 0, 2, 0).astype(np.int8),
        )

    return make
