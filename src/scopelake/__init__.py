"""scopelake: the activation store and query layer for Gemma 3 and Gemma Scope 2.

>>> import scopelake                                             # doctest: +SKIP
>>> lake = scopelake.open("demo-lake")                           # doctest: +SKIP
>>> lake.top_contexts(17, layer=3, site="resid_post")            # doctest: +SKIP

Importing this package loads neither torch nor DuckDB; what a call needs is loaded by the call.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import ScopelakeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scopelake.ingest.cost_plan import CostPlan
    from scopelake.lake import Lake
    from scopelake.names import Site
    from scopelake.query.token_sets import TokenSet
    from scopelake.store.verify import Verification

__all__ = ["Lake", "ScopelakeError", "TokenSet", "__version__", "create", "open", "plan", "verify"]


def create(path: str | Path) -> Lake:
    """Create an empty lake at `path`, a folder or ``s3://`` prefix that is absent or empty.

    Raises:
        LakeExistsError: something is there already.
    """
    from scopelake.lake import Lake

    return Lake.create(path)


def open(path: str | Path, snapshot: int | None = None) -> Lake:  # noqa: A001
    """Open the lake at `path`: at its latest snapshot, or pinned to `snapshot` and read-only.

    Raises:
        LakeNotFoundError: nothing is there.
        NotALakeError: the folder is not a lake.
        DamagedFileError: its lake.json is damaged or missing, or what says which snapshots it has.
        SnapshotNotFoundError: there is no such snapshot.
    """
    from scopelake.lake import Lake

    return Lake.open(path, snapshot)


def plan(
    tokens: float,
    *,
    model: str | Path,
    saes: str | Path | Sequence[str | Path] = (),
    dense: Sequence[tuple[Site, int] | str] = (),
    context_length: int = 1024,
    shard_contexts: int = 256,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | Mapping[str, int | str] | None = None,
    activation_bits: int = 10,
    batch_tokens: int = 16384,
    keep: str = "all",
    memory: str | int | None = None,
    tokens_per_second: float | None = None,
    model_name: str | None = None,
) -> CostPlan:
    """Return what an ingest of so many tokens would cost; nothing runs, nothing is fetched.

    Of a corpus that a lake has, `Lake.plan` says more, and can run a pilot.

    Args:
        tokens: of the corpus, in full contexts, BOS included.
        model: folder of a Gemma 3, or the hub id of a published one, which is known by its name.
        saes: folders or patterns, or hub ids and patterns of published coders, known by name.
        dense: sites whose activations are stored: (site, layer) pairs, or ``resid_post/3``.
        context_length: most tokens in a context.
        shard_contexts: contexts in a shard.
        device: ``auto``, ``cpu``, ``cuda``, or ``h100``, whose rates are assumed.
        dtype: as in `Lake.ingest`.
        device_map: as in `Lake.ingest`; the time is as if one device held the model.
        activation_bits: as in `Lake.ingest`.
        batch_tokens: as in `Lake.ingest`.
        keep: as in `Lake.ingest`; the time is that of keeping all, which bounds it.
        memory: as in `Lake.ingest`; by default 60 % of the machine's that the plan is for.
        tokens_per_second: a throughput that is known, from which the time follows.
        model_name: what the coders call the model, if a local folder has another name.

    Raises:
        ModelError, CoderFileError, CoderMismatchError, InvalidArgumentError,
        MissingDependencyError.
    """
    from scopelake.planning import plan as plan_of_tokens

    return plan_of_tokens(
        tokens, model=model, saes=saes, dense=dense, context_length=context_length,
        shard_contexts=shard_contexts, device=device, dtype=dtype,
        device_map=device_map, activation_bits=activation_bits, batch_tokens=batch_tokens,
        keep=keep, memory=memory, tokens_per_second=tokens_per_second, model_name=model_name,
    )  # fmt: skip


def verify(
    path: str | Path,
    snapshot: int | None = None,
    *,
    all_snapshots: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Re-read the files of the lake at `path`, also of one too damaged to be opened.

    Args:
        path: of the lake.
        snapshot: whose files; of the latest by default.
        all_snapshots: read the files that any snapshot names, each once.
        progress: called with bytes read and bytes in all.

    Raises:
        LakeNotFoundError: nothing is there.
        NotALakeError: the folder is not a lake.
        DamagedFileError: its lake.json is damaged or missing.
        SnapshotNotFoundError: there is no such snapshot.
        InvalidArgumentError: one snapshot and all were asked for.
    """
    from scopelake.lake import verify

    return verify(path, snapshot, all_snapshots=all_snapshots, progress=progress)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Lake":
        from scopelake.lake import Lake

        return Lake
    if name == "TokenSet":
        from scopelake.query.token_sets import TokenSet

        return TokenSet
    if name == "__version__":
        return version("scopelake")
    raise AttributeError(f"module 'scopelake' has no attribute {name!r}")
