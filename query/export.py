"""Exports: a coder's firings on a corpus, as other tools read them, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np

from scopelake.errors import (
    FeatureNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    QueryError,
)
from scopelake.names import counted, shortened
from scopelake.query.connect import Connection
from scopelake.query.export_circuit_tracer import CircuitTracerExporter
from scopelake.query.export_datasets import DatasetsExporter
from scopelake.query.export_delphi import DelphiExporter
from scopelake.query.export_neuronpedia import NeuronpediaExporter
from scopelake.query.export_source import ExportSource
from scopelake.query.exporter import Exporter, ExportOptions, Progress, Written
from scopelake.query.partial import partial_on
from scopelake.query.resolve import SaeInfo
from scopelake.store.outside import check_outside

MANIFEST: Final = "scopelake.json"
README: Final = "README.md"

EXPORTERS: Final[Mapping[str, Exporter]] = {
    exporter.name: exporter
    for exporter in (
        DelphiExporter(),
        NeuronpediaExporter(),
        CircuitTracerExporter(),
        DatasetsExporter(),
    )
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    format: str
    sae: str
    sae_digest: str | None
    corpus: str
    n_features: int
    n_firings: int
    """That are in the export."""
    n_files: int
    n_bytes: int
    seconds: float
    left_out: tuple[str, ...]
    """What the format cannot hold, or was not asked for."""

    def to_text(self) -> str:
        """Return it as a line, and one for each thing left out."""
        line = (
            f"{self.format}: {counted(self.n_features, 'feature')} of {self.sae} on corpus "
            f"{self.corpus}, {counted(self.n_firings, 'firing')} in "
            f"{counted(self.n_files, 'file')} of {self.n_bytes / 1e6:.1f} MB: {self.path}"
        )
        return "\n".join([line, *(f"left out: {one}" for one in self.left_out)])

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return "<br>".join(map(escape, self.to_text().splitlines()))


def exporter_of(form: str) -> Exporter:
    """Return what writes a format.

    Raises:
        InvalidArgumentError: there is none.
    """
    if form not in EXPORTERS:
        raise InvalidArgumentError(
            f"an export as {form!r} was asked for; formats are {', '.join(EXPORTERS)}; choose one"
        )
    return EXPORTERS[form]


def corpus_to_export(connection: Connection, sae: SaeInfo, corpus: str | None) -> str:
    """Return the corpus on which a coder is exported.

    Raises:
        CorpusNotFoundError, NotIngestedError: there is no such corpus, or the SAE was not run on
            it, or its ingest is not through.
        QueryError: not all firings are known there.
        InvalidArgumentError: none was named, and the SAE was run on several.
    """
    coverage = connection.coverage
    coverage.check_known(sae, corpus)
    if corpus is None:
        there = sorted({*coverage.corpora(sae.name), *sae.partial})
        if len(there) > 1:
            raise InvalidArgumentError(
                f"an export of {sae.name} was asked for; it was run on {', '.join(there)}, and an "
                "export is of one corpus; give corpus="
            )
        corpus = there[0]
    for known in partial_on(sae, corpus).values():
        raise QueryError(
            f"an export of {sae.name} on corpus {corpus!r} was asked for; not all of its firings "
            f"are known there ({known.what}); name another corpus, or ingest it with all firings "
            "into another"
        )
    if state := coverage.state(sae.name, corpus):
        raise NotIngestedError(
            f"an export of {sae.name} on corpus {corpus!r} was asked for; it is {state}; ingest "
            "again to resume"
        )
    return corpus


def features_to_export(sae: SaeInfo, features: Sequence[int] | None) -> list[int] | None:
    """Return the features ascending, each once; None: all.

    Raises:
        FeatureNotFoundError: the SAE does not have one.
        InvalidArgumentError: none is named.
    """
    if features is None:
        return None
    chosen = sorted(set(features))
    if not chosen:
        raise InvalidArgumentError(
            f"an export of no features of {sae.name} was asked for; name one at least, or leave "
            "features out to have all"
        )
    if wrong := [f for f in chosen if not 0 <= f < sae.width]:
        raise FeatureNotFoundError(
            f"features {shortened(list(map(str, wrong)))} of {sae.name} were asked for; it has "
            f"features 0 to {sae.width - 1}; choose among them"
        )
    return chosen


def export(
    source: ExportSource,
    form: str,
    path: Path,
    options: ExportOptions,
    progress: Progress | None = None,
) -> Exported:
    """Write an export into a folder, which is there when it is whole.

    Args:
        source: what is exported.
        form: one of `EXPORTERS`.
        path: the folder, which is not there yet.
        options: of the format.
        progress: called with (what, done, of how many).

    Raises:
        InvalidArgumentError: something is at `path`, it is in a lake, its parent is no folder, or
            an option is not one of the format's.
        DamagedFileError: a file of the lake is not what was written.
    """
    started = time.monotonic()
    exporter = exporter_of(form)
    options.check(exporter)
    with _made_whole(path) as folder:
        done = exporter.write(source, folder, options, progress or (lambda what, n, of: None))
        n_firings = int(source.n_firings.sum())
        _describe(source, exporter, done, folder)
        sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    return Exported(
        path, form, source.sae.name, source.sae_row["digest"], source.corpus,
        len(source.features), n_firings if done.n_firings is None else done.n_firings,
        len(sizes), sum(sizes), time.monotonic() - started, done.left_out,
    )  # fmt: skip


@contextmanager
def _made_whole(path: Path) -> Iterator[Path]:
    """Give a folder beside `path` that becomes it at the end, or is gone."""
    if str(path).startswith("s3:/"):
        raise InvalidArgumentError(
            f"an export to {path} was asked for; an export is a folder of this machine; name one, "
            "and copy it"
        )
    _check_absent(path)
    check_outside(path)
    if not path.parent.is_dir():
        raise InvalidArgumentError(
            f"an export to {path} was asked for; {path.parent} is no folder; make it first"
        )
    folder = path.parent / f".{path.name}-{uuid4().hex[:12]}.partial"
    folder.mkdir()
    try:
        yield folder
        _check_absent(path)
        folder.rename(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise InvalidArgumentError(
            f"an export to {path} was asked for; it is there already; name another folder, or "
            "remove it first"
        )


def _describe(source: ExportSource, exporter: Exporter, done: Written, folder: Path) -> None:
    """Write what the export is of, and what it is short of, for programs and for people."""
    facts: dict[str, Any] = {
        "format": exporter.name,
        "made_by": f"scopelake {version('scopelake')}",
        **source.facts(),
        "n_firings": int(source.n_firings.sum()),
        "n_firings_on_bos": int(source.n_on_bos.sum()),
        **done.facts,
        "left_out": list(done.left_out),
    }
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(source, exporter, done, facts), encoding="utf-8")


def _readme(
    source: ExportSource, exporter: Exporter, done: Written, facts: Mapping[str, Any]
) -> str:
    n = len(source.features)
    silent = int(np.count_nonzero(source.n_firings[source.features] == 0))
    rows = {
        "SAE": facts["sae"],
        "its digest": facts["sae_digest"] or "not recorded",
        "features": f"{n:,} of {source.sae.width:,}, {silent:,} of which never fire",
        "firings": f"{facts['n_firings']:,}, {facts['n_firings_on_bos']:,} of them on BOS",
        "model": facts["model"] or "not recorded",
        "corpus": f"{facts['corpus']}, {facts['n_contexts']:,} contexts, "
        f"{facts['n_tokens']:,} tokens",
        "tokenizer": facts["tokenizer"],
        "snapshot": f"{facts['snapshot']} of lake {facts['lake']}",
    }
    lines = [
        f"{done.front_matter}# {facts['sae']}",
        "",
        f"{exporter.about}, written by {facts['made_by']}.",
        "",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        f"```python\n{done.usage.strip()}\n```",
        "",
        "## What is not in it",
        "",
        *(f"- {one}" for one in done.left_out or ("Nothing that the lake has of these features.",)),
        "",
        f"All of this for programs: `{MANIFEST}`.",
    ]
    return "\n".join(lines) + "\n"
