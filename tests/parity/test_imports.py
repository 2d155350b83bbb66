"""A cache that delphi's own code wrote is imported: every firing, every token.

`make parity` installs delphi beside this package's environment and runs these tests.
"""

import numpy as np
import pytest
import torch

import scopelake
from scopelake import tiny

pytestmark = pytest.mark.parity
REASON = "needs eai-delphi: run `make parity`"
cache_module = pytest.importorskip("delphi.latents.cache", reason=REASON)
config_module = pytest.importorskip("delphi.config", reason=REASON)

MODULE = "layers.3"
ROWS, LENGTH, WIDTH, BATCH = 12, 32, 50, 4
SAE = "theirs/resid_post/layer_3_width_50"


def test_a_cache_that_delphi_wrote_is_read_whole(tmp_path):
    rng = np.random.default_rng(6)
    tokens = torch.from_numpy(rng.integers(110, 4_000, (ROWS, LENGTH)))
    tokens[:, 0] = 2
    latents = torch.from_numpy(rng.random((ROWS, LENGTH, WIDTH)).astype(np.float32))
    latents[latents < 0.9] = 0  # every split has firings, as delphi's writer needs
    cache = cache_module.LatentCache.__new__(cache_module.LatentCache)  # it wants a model
    cache.cache, cache.width = cache_module.InMemoryCache(batch_size=BATCH), WIDTH
    for batch in range(ROWS // BATCH):
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        cache.cache.add(latents[rows], tokens[rows], batch, MODULE)
    cache.cache.save()
    cache.save_splits(5, tmp_path / "latents")
    config = config_module.CacheConfig(cache_ctx_len=LENGTH)
    cache.save_config(tmp_path / "latents", config, "google/gemma-3-1b-pt")
    lake = scopelake.create(tmp_path / "lake")
    done = lake.import_delphi(
        tmp_path / "latents" / MODULE, "theirs", sae=SAE, layer=3, site="resid_post",
        tokenizer=tiny.MODEL_NAME,
    )  # fmt: skip
    rows = lake.sql("SELECT context, position, feature, activation FROM codes").to_pylist()
    found = np.zeros(latents.shape, np.float32)
    for row in rows:
        found[row["context"], row["position"], row["feature"]] = row["activation"]
    assert (found == latents.half().float().numpy()).all()
    assert done.n_firings == len(rows) == int((latents > 0).sum())
    ids = lake.sql("SELECT token_ids FROM contexts ORDER BY context")["token_ids"].to_pylist()
    assert ids == tokens.tolist()
