"""The verb that says what an ingest would cost, before anything runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopelake.errors import HubUnreachableError, InvalidArgumentError, ModelError
from scopelake.handle import LakeHandle
from scopelake.named import bundled_coders, coder_specs, model_files, site_layers
from scopelake.names import Site, check_filled, check_whole, counted
from scopelake.store.folder_root import FolderRoot

if TYPE_CHECKING:
    from scopelake.ingest.cost_plan import CostPlan
    from scopelake.ingest.devices import Device
    from scopelake.ingest.plan import IngestConfig
    from scopelake.ingest.report import Progress
    from scopelake.ingest.shapes import CoderShape, ModelShape
    from scopelake.ingest.work_left import Asked


_MOST_TOKENS = 1e12


class Planning(LakeHandle):
    """Plans of what an ingest of a lake's corpus would do."""

    def plan(
        self,
        corpus: str,
        *,
        model: str | Path,
        saes: str | Path | Sequence[str | Path] = (),
        dense: Sequence[tuple[Site, int] | str] = (),
        device: str = "auto",
        dtype: str = "auto",
        device_map: str | Mapping[str, int | str] | None = None,
        activation_bits: int = 10,
        batch_tokens: int = 16384,
        keep: str = "all",
        memory: str | int | None = None,
        tokens_per_second: float | None = None,
        pilot: bool = False,
        model_name: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> CostPlan:
        """Return what `ingest` with the same arguments would cost; the lake stays as it is.

        Without a pilot config.json and the headers of the coders are read, and no weights;
        published models and coders that are named by hub id are known without being fetched.

        Args:
            corpus: name of a corpus in the lake; what the lake has of it already costs nothing.
            model: as in `ingest`.
            saes: as in `ingest`.
            dense: as in `ingest`.
            device: as in `ingest`, or ``h100``, with assumed rates.
            dtype: as in `ingest`.
            device_map: as in `ingest`; the time is as if one device held the model.
            activation_bits: as in `ingest`.
            batch_tokens: as in `ingest`.
            keep: as in `ingest`; the time is that of keeping all, which bounds it.
            memory: as in `ingest`; what is too little is among `CostPlan.misfits`, in the words in
                which an ingest would refuse it.
            tokens_per_second: a throughput that is known, from which the time follows.
            pilot: run the first shard that is left in a lake of its own, which is removed, and put
                what was measured in the place of guesses.
            model_name: as in `ingest`.
            progress: called after every batch of the pilot.

        Raises:
            CorpusNotFoundError, ModelError, CoderFileError, CoderMismatchError,
            InvalidArgumentError, MissingDependencyError.
        """
        from scopelake.ingest.devices import PROFILES
        from scopelake.ingest.estimate import estimate
        from scopelake.ingest.plan import IngestConfig, check_precision
        from scopelake.ingest.work_left import work_in_lake

        sites = site_layers(dense)
        made = IngestConfig(corpus, sites, activation_bits, batch_tokens, keep=keep, memory=memory)
        where = _Where(device, dtype, device_map)
        asked = _asked(model, saes, made, where, model_name)
        root = self._store.root
        free = shutil.disk_usage(root.path).free if isinstance(root, FolderRoot) else None
        work = work_in_lake(self._store, self._snapshot, corpus, asked, free)
        names = [coder.name for coder in asked.coders]
        check_precision(self._store, self._snapshot, made, where.precision, names)
        machine = where.machine()
        _check_rate(tokens_per_second)
        plain = estimate(work, machine, tokens_per_second, notes=_notes(asked))
        if not pilot or plain.already_complete:
            return plain
        if machine is PROFILES.get(device):
            raise InvalidArgumentError(
                f"a pilot on device {device!r} was asked for; its rates are assumed and it is not "
                "here; leave the pilot out, or choose 'auto'"
            )
        from scopelake.ingest.find_coders import find_coders
        from scopelake.ingest.pilot import PilotConfig, run_pilot

        files = model_files(model, model_name)
        specs = coder_specs(saes)
        coders = find_coders(specs, files.name, bundled_coders()) if specs else []
        config = PilotConfig(
            self._store, self._snapshot, work, files, tuple(coders), device, dtype, device_map
        )
        return run_pilot(config, machine, plain, tokens_per_second, progress)


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
    """Return what an ingest of so many tokens would cost; see `scopelake.plan`."""
    from scopelake.ingest.estimate import estimate
    from scopelake.ingest.plan import IngestConfig
    from scopelake.ingest.work_left import work_of_tokens

    n_tokens = _whole_tokens(tokens)
    sites = site_layers(dense)
    made = IngestConfig("", sites, activation_bits, batch_tokens, keep=keep, memory=memory)
    where = _Where(device, dtype, device_map)
    asked = _asked(model, saes, made, where, model_name)
    work = work_of_tokens(
        n_tokens,
        check_whole("context_length", context_length),
        check_whole("shard_contexts", shard_contexts),
        asked,
    )
    _check_rate(tokens_per_second)
    return estimate(work, where.machine(), tokens_per_second, notes=_notes(asked))


def _whole_tokens(tokens: object) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, Real):
        raise InvalidArgumentError(
            f"a plan for tokens={tokens!r} was asked for; it is of type {type(tokens).__name__}; "
            "give a number"
        )
    n_tokens: Any = tokens
    if not 1 <= n_tokens <= _MOST_TOKENS:
        raise InvalidArgumentError(
            f"a plan for tokens={tokens} was asked for; a plan is of 1 to {_MOST_TOKENS:,.0f}; "
            "what lies beyond costs in proportion"
        )
    found: int = round(n_tokens)
    return found


def _asked(
    model: str | Path,
    saes: str | Path | Sequence[str | Path],
    made: IngestConfig,
    where: _Where,
    model_name: str | None,
) -> Asked:
    from scopelake.ingest.budget import parse_memory
    from scopelake.ingest.work_left import Asked
    from scopelake.store.keeping import parse_keep

    parse_memory(made.memory)
    specs = coder_specs(saes)
    if not specs and not made.dense:
        raise InvalidArgumentError(
            "a plan without SAEs and dense sites was asked for; that makes nothing; name some"
        )
    shape = _model(model, model_name)
    coders = tuple(dict.fromkeys(c for spec in specs for c in _coders(spec, shape.name)))
    return Asked(
        shape, coders, made.dense, made.activation_bits, made.batch_tokens,
        4 if where.precision == "float32" else 2, parse_keep(made.keep), made.memory,
        where.device_map is not None,
    )  # fmt: skip


def _model(model: str | Path, name: str | None) -> ModelShape:
    from dataclasses import replace

    from scopelake.ingest.grid import PUBLISHED, published_model
    from scopelake.ingest.shapes import model_shape

    if not isinstance(model, Path):
        check_filled("model", model)
    if not Path(model).is_dir() and (known := published_model(str(model))) is not None:
        return replace(known, name=name or known.name)
    try:
        return model_shape(model_files(model, name, tokenizer_only=True))
    except HubUnreachableError as error:
        raise HubUnreachableError(
            f"{error}; published models are known without it: {', '.join(PUBLISHED)}"
        ) from error


def _coders(spec: str | Path, model_name: str) -> list[CoderShape]:
    from scopelake.ingest.find_coders import find_headers
    from scopelake.ingest.grid import published_coders
    from scopelake.ingest.shapes import coder_shape

    if not Path(spec).is_dir() and (known := published_coders(str(spec), model_name)) is not None:
        return known
    return [coder_shape(c) for c in find_headers([spec], model_name, bundled_coders())]


@dataclass(frozen=True)
class _Where:
    """Where an ingest would run, and in which precision."""

    device: str
    """As of `ingest`, or one of `PROFILES`."""
    dtype: str
    device_map: str | Mapping[str, int | str] | None

    def __post_init__(self) -> None:
        from scopelake.ingest.devices import PROFILES
        from scopelake.ingest.model import check_device_map

        if self.device not in PROFILES:
            check_device_map(self.device_map, self.device)

    @property
    def precision(self) -> str:
        """The precision that the model will have, as `load_model` chooses it."""
        from scopelake.ingest.devices import PROFILES
        from scopelake.ingest.model import choose_device

        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ModelError(
                f"dtype {self.dtype!r} was asked for; Gemma 3's activations pass 65504, which "
                "float16 cannot hold; choose 'bfloat16' or 'float32'"
            )
        if self.dtype != "auto":
            return self.dtype
        is_gpu = self.device in PROFILES or choose_device(self.device, PROFILES).type != "cpu"
        return "bfloat16" if is_gpu else "float32"

    def machine(self) -> Device:
        """Return what it computes and stores with."""
        import torch

        from scopelake.ingest.devices import PROFILES, this_device
        from scopelake.ingest.model import choose_device

        if self.device in PROFILES:
            return PROFILES[self.device]
        dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
        return this_device(choose_device(self.device, PROFILES), dtype)


def _check_rate(tokens_per_second: float | None) -> None:
    if tokens_per_second is not None and not 0 < tokens_per_second < float("inf"):
        raise InvalidArgumentError(
            f"a plan with tokens_per_second={tokens_per_second} was asked for; a rate is above 0; "
            "give such a one"
        )


def _notes(asked: Asked) -> list[str]:
    notes = []
    if not asked.keep.is_all:
        notes.append(
            f"keep {asked.keep}: the time is that of keeping all, which bounds it; tallies are "
            "guessed"
        )
    if asked.is_spread:
        notes.append("with a device map: the time is as if one device held the model")
    guessed = [c.name for c in asked.coders if c.l0_basis == "guessed"]
    if guessed:
        notes.append(
            f"of {counted(len(guessed), 'coder')} no L0 is stated; it is guessed from the labels"
        )
    if any(c.l0_basis == "grid" for c in asked.coders):
        notes.append(
            "coders are those of the published grid, of which some were never uploaded: scopelake "
            "saes lists what is there"
        )
    return notes
