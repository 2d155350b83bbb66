"""Catalogue rows that an ingest writes: saes, models, runs."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.model import LoadedModel
from scopelake.ingest.plan import IngestConfig, IngestPlan
from scopelake.store.precision import relative_error
from scopelake.store.schema import SCHEMAS

_PACKAGES = ("torch", "transformers", "tokenizers", "deltalake", "pyarrow", "zarr", "numpy")


@dataclass
class RunTotals:
    """What a run has done so far."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    tokens: int = 0
    firings: int = 0
    n_bytes: int = 0


def sae_table(coders: Sequence[CoderFiles], model: LoadedModel) -> pa.Table:
    """Return the rows of the saes table for `coders`."""
    rows = [
        {
            "sae": c.name,
            "repo": c.repo,
            "family": c.family,
            "folder": c.folder,
            "type": c.type,
            "site": c.sites[0].site,
            "layer": c.sites[0].layer,
            "layers": [s.layer for s in c.sites],
            "features_per_layer": c.features_per_layer,
            "width": c.width,
            "d_in": c.d_in,
            "d_out": c.d_out,
            "l0": c.l0,
            "affine": c.affine,
            "model": model.name,
            "hook_in": c.hook_in,
            "hook_out": c.hook_out,
            "digest": c.digest,
            "n_bytes": c.n_bytes,
        }
        for c in coders
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["saes"])


def model_table(model: LoadedModel) -> pa.Table:
    """Return the row of the models table for `model`."""
    row = {
        "model": model.name,
        "revision": model.revision,
        "digest": model.digest,
        "architecture": model.architecture,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": model.dtype,
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["models"])


def run_table(
    plan: IngestPlan, config: IngestConfig, model: LoadedModel, totals: RunTotals, *, complete: bool
) -> pa.Table:
    """Return the row of the runs table; `totals` count what this call of ingest did."""
    now = datetime.now(UTC)
    row: dict[str, Any] = {
        "run": plan.run,
        "corpus": config.corpus,
        "model": model.name,
        "saes": [c.name for c in plan.coders],
        "dense": [str(s) for s in config.dense],
        "state": "complete" if complete else "running",
        "n_shards": plan.n_shards,
        "activation_bits": config.activation_bits,
        "relative_error": relative_error(config.activation_bits),
        "device": str(model.device),
        "dtype": model.dtype,
        "versions": json.dumps(versions()),
        "config": json.dumps({"batch_tokens": config.batch_tokens}),
        "started_at": totals.started_at,
        "finished_at": now if complete else None,
        "tokens": totals.tokens,
        "firings": totals.firings,
        "n_bytes": totals.n_bytes,
        "seconds": (now - totals.started_at).total_seconds(),
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["runs"])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
