"""Catalogue rows that an ingest writes: saes, models, runs."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from scopelake.ingest.coder_identity import CoderIdentity
from scopelake.ingest.coders import CoderFiles
from scopelake.ingest.examples import Examples
from scopelake.ingest.model import ModelIdentity
from scopelake.ingest.plan import IngestConfig, IngestPlan
from scopelake.ingest.stages import Stages
from scopelake.store.keeping import parse_keep
from scopelake.store.precision import relative_error
from scopelake.store.processes import this_process
from scopelake.store.schema import SCHEMAS

_PACKAGES = ("torch", "transformers", "tokenizers", "deltalake", "pyarrow", "zarr", "numpy")


@dataclass
class RunTotals:
    """What a run has done so far, and its clock."""

    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    tokens: int = 0
    firings: int = 0
    n_bytes: int = 0
    stages: Stages = field(default_factory=Stages)

    @property
    def seconds(self) -> float:
        """Since it began; once it has ended, until then."""
        until = time.perf_counter() if self.ended is None else self.ended
        return max(until - self.began, 1e-6)

    def end(self) -> None:
        """Stop the clock."""
        self.ended = time.perf_counter()


def sae_table(coders: Sequence[CoderFiles], model: ModelIdentity) -> pa.Table:
    """Return the rows of the saes table for `coders`."""
    rows = [{**_sae_row(c), **_weights_row(c), "model": model.name} for c in coders]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["saes"])


def published_sae_table(examples: Examples) -> pa.Table:
    """Return the row of the saes table of a coder of which examples are known.

    Without its weights their sizes and digest are null.
    """
    row = {
        **_sae_row(examples.identity),
        "features_per_layer": examples.n_features,
        "width": examples.n_features,
    }
    if examples.weights is not None:
        row |= _weights_row(examples.weights)
    return pa.Table.from_pylist([row], schema=SCHEMAS["saes"])


def _sae_row(coder: CoderIdentity) -> dict[str, Any]:
    return {
        "sae": coder.name,
        "repo": coder.repo,
        "family": coder.family,
        "folder": coder.folder,
        "type": coder.type,
        "site": coder.sites[0].site,
        "layer": coder.sites[0].layer,
        "layers": [s.layer for s in coder.sites],
        "l0": coder.l0,
        "affine": coder.affine,
        "model": coder.model_name,
        "hook_in": coder.hook_in,
        "hook_out": coder.hook_out,
    }


def _weights_row(coder: CoderFiles) -> dict[str, Any]:
    return {
        "features_per_layer": coder.features_per_layer,
        "width": coder.width,
        "d_in": coder.d_in,
        "d_out": coder.d_out,
        "digest": coder.digest,
        "n_bytes": coder.n_bytes,
    }


def model_table(model: ModelIdentity) -> pa.Table:
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
    plan: IngestPlan,
    config: IngestConfig,
    model: ModelIdentity,
    totals: RunTotals,
    origin: str,
    state: str,
) -> pa.Table:
    """Return the row of the runs table.

    Args:
        plan: what is to be done.
        config: how.
        model: whose activations are encoded.
        totals: what this call of ingest did.
        origin: how the activations come about.
        state: ``running``, ``complete``, ``stopped`` (on request), ``incomplete`` (shards were
            set aside) or ``interrupted`` (it was broken off).
    """
    is_over, seconds = state != "running", totals.seconds
    row: dict[str, Any] = {
        "run": plan.run,
        "corpus": config.corpus,
        "model": model.name,
        "saes": [c.name for c in plan.coders],
        "dense": [str(s) for s in config.dense],
        "state": state,
        "n_shards": plan.n_shards,
        "activation_bits": config.activation_bits,
        "relative_error": relative_error(config.activation_bits),
        "device": str(model.device),
        "dtype": model.dtype,
        "versions": json.dumps(versions()),
        "config": json.dumps(
            {
                "batch_tokens": config.batch_tokens,
                "activations": origin,
                "keep": str(parse_keep(config.keep)),
                "memory": config.memory,
                "inputs": _inputs(plan, model),
                "host": _host(),
                "seconds": totals.stages.seconds if is_over else None,
                "tokens_per_second": round(totals.tokens / seconds, 1) if is_over else None,
            }
        ),
        "started_at": totals.started_at,
        "finished_at": totals.started_at + timedelta(seconds=seconds) if is_over else None,
        "tokens": totals.tokens,
        "firings": totals.firings,
        "n_bytes": totals.n_bytes,
        "seconds": seconds,
    }
    return pa.Table.from_pylist([row], schema=SCHEMAS["runs"])


def _inputs(plan: IngestPlan, model: ModelIdentity) -> dict[str, Any]:
    """Return a digest of everything that the firings follow from."""
    return {
        "corpus": plan.corpus["source_digest"],
        "tokenizer": plan.corpus["tokenizer_digest"],
        "model": model.digest,
        "saes": {coder.name: coder.digest for coder in plan.coders},
    }


def _host() -> dict[str, Any]:
    return {"name": platform.node(), "machine": platform.machine(), "cpus": os.cpu_count(),
            "system": platform.system(), "process": this_process()}  # fmt: skip


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that shape the result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
