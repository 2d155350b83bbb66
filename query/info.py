"""What a lake holds and what it weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any

from scopelake.names import counted
from scopelake.store.catalog import published_examples
from scopelake.store.keeping import KEEP_ALL, Keep, partly_kept
from scopelake.store.lake_store import LakeStore
from scopelake.store.layout import DENSE
from scopelake.store.run_states import INTERRUPTED, RUNNING, state_now
from scopelake.store.snapshot import Snapshot


@dataclass(frozen=True)
class CorpusInfo:
    """A corpus."""

    corpus: str
    documents: int
    contexts: int
    tokens: int
    """BOS included."""


@dataclass(frozen=True)
class CodesInfo:
    """The firings of one SAE on one corpus."""

    sae: str
    corpus: str
    firings: int
    """Those on BOS included."""
    codes_bytes: int
    postings_bytes: int
    peaks_bytes: int
    complete: bool
    """Whether the statistics are written, which comes after the last shard."""
    keep: str
    """What the ingest kept of them: ``all``, ``peaks`` or ``sample:<share>``."""

    def bytes_a_firing(self) -> dict[str, float | None]:
        """Return stored bytes for each firing: by order, both orders, peaks.

        None without any, or where not all are kept: peaks are of all of them.
        """
        return _bytes_a_firing([self])


@dataclass(frozen=True)
class ExamplesInfo:
    """Published examples of one SAE on one corpus; its other firings are not known."""

    sae: str
    corpus: str
    firings: int
    n_bytes: int


@dataclass(frozen=True)
class DenseInfo:
    """One array of dense activations."""

    corpus: str
    model: str
    site: str
    layer: int
    n_bytes: int


@dataclass(frozen=True)
class EvaluationInfo:
    """How well an SAE reconstructs on a corpus, at one of its layers; BOS left out."""

    sae: str
    corpus: str
    layer: int
    n_tokens: int
    """Evaluated on, a sample of the corpus."""
    fvu: float
    l0: float
    dead: int
    """Features that fired on none of these tokens."""
    loss: float
    """Of the model, nats a token."""
    loss_spliced: float | None
    """With the reconstruction in place; None for coders of several layers."""


@dataclass(frozen=True)
class RunInfo:
    """One ingest."""

    run: str
    corpus: str
    model: str
    state: str
    """``running``, ``complete``, ``stopped`` (on request), ``incomplete`` (shards were set aside),
    ``interrupted`` (broken off, or its process is gone), or ``imported``."""
    elsewhere: str | None = None
    """Of one that is running: the machine, if it is another, from which nothing tells whether it
    still runs."""

    def to_text(self) -> str:
        """Return it as a line."""
        if self.state != RUNNING:
            said = f"was {self.state}"
        elif self.elsewhere is None:
            said = "is running"
        else:
            said = f"is running on {self.elsewhere}, or was killed there"
        advice = "" if said == "is running" else "; ingest again to resume it"
        return f"run {self.run} ({self.model} on {self.corpus}) {said}, not complete{advice}"


@dataclass(frozen=True)
class LakeInfo:
    """A lake at a snapshot."""

    path: str
    snapshot: int
    corpora: tuple[CorpusInfo, ...]
    models: tuple[str, ...]
    codes: tuple[CodesInfo, ...]
    examples: tuple[ExamplesInfo, ...]
    dense: tuple[DenseInfo, ...]
    evaluations: tuple[EvaluationInfo, ...]
    runs: tuple[RunInfo, ...]
    total_bytes: int
    """Of all data files in the catalogue."""

    @property
    def firings(self) -> int:
        """Firings of all SAEs on all corpora, of those that are kept."""
        return sum(c.firings for c in self.codes)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all dense activations."""
        return sum(d.n_bytes for d in self.dense)

    def bytes_a_firing(self) -> dict[str, float | None]:
        """Return stored bytes for each firing: by order, both orders, peaks; None without any."""
        return _bytes_a_firing(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            **asdict(self),
            "codes": [{**asdict(c), "bytes_a_firing": c.bytes_a_firing()} for c in self.codes],
            "firings": self.firings,
            "dense_bytes": self.dense_bytes,
            "bytes_a_firing": self.bytes_a_firing(),
        }

    def to_text(self) -> str:
        """Return a summary of a few lines and a row for each SAE and corpus."""
        lines = [f"{self.path}, snapshot {self.snapshot}, {self.total_bytes / 1e6:,.1f} MB"]
        lines += [
            f"  corpus {c.corpus}: {counted(c.documents, 'document')}, "
            f"{counted(c.contexts, 'context')}, "
            f"{counted(c.tokens, 'token')}"
            for c in self.corpora
        ]
        lines += [f"  model {m}" for m in self.models]
        lines += _codes_lines(self)
        lines += [
            f"  examples of {e.sae} on {e.corpus}: {counted(e.firings, 'firing')}, "
            f"{e.n_bytes / 1e6:,.1f} MB"
            for e in self.examples
        ]
        lines += [
            f"  dense {d.site}/{d.layer} of {d.model} on {d.corpus}: {d.n_bytes / 1e6:,.1f} MB"
            for d in self.dense
        ]
        lines += [_evaluation_line(e) for e in self.evaluations]
        lines += [f"  {run.to_text()}" for run in self.runs if run.state in (RUNNING, INTERRUPTED)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.to_text())}</pre>"


def info(store: LakeStore, snapshot: Snapshot) -> LakeInfo:
    """Return what `store` holds at `snapshot`, from its catalogue alone."""
    corpora = store.read("corpora", snapshot).sort_by("corpus").to_pylist()
    columns = ["kind", "corpus", "sae", "model", "site", "layer", "n_rows", "n_bytes"]
    files = store.read("files", snapshot, columns).to_pylist()
    published = published_examples(store, snapshot)
    return LakeInfo(
        path=store.root.url,
        snapshot=snapshot.id,
        corpora=tuple(
            CorpusInfo(r["corpus"], r["n_documents"], r["n_contexts"], r["n_tokens"])
            for r in corpora
        ),
        models=tuple(sorted(store.read("models", snapshot, ["model"])["model"].to_pylist())),
        codes=_codes(
            [f for f in files if (f["sae"], f["corpus"]) not in published],
            partly_kept(store, snapshot),
        ),
        examples=_examples([f for f in files if (f["sae"], f["corpus"]) in published]),
        dense=_dense(files),
        evaluations=_evaluations(store, snapshot),
        runs=_runs(store, snapshot),
        total_bytes=sum(f["n_bytes"] for f in files),
    )


def _runs(store: LakeStore, snapshot: Snapshot) -> tuple[RunInfo, ...]:
    columns = ["run", "corpus", "model", "state", "config"]
    rows = store.read("runs", snapshot, columns).sort_by("run").to_pylist()
    return tuple(
        RunInfo(r["run"], r["corpus"], r["model"], *state_now(r["state"], r["config"]))
        for r in rows
    )


def _evaluations(store: LakeStore, snapshot: Snapshot) -> tuple[EvaluationInfo, ...]:
    columns = [field.name for field in fields(EvaluationInfo)]
    rows = store.read("evaluations", snapshot, columns).to_pylist()
    found = [EvaluationInfo(**row) for row in rows]
    return tuple(sorted(found, key=lambda e: (e.sae, e.corpus, e.layer)))


def _examples(files: list[dict[str, Any]]) -> tuple[ExamplesInfo, ...]:
    sums: dict[tuple[str, str], list[int]] = {}
    for file in files:
        entry = sums.setdefault((file["sae"], file["corpus"]), [0, 0])
        entry[0] += file["n_rows"] if file["kind"] == "peaks" else 0
        entry[1] += file["n_bytes"]
    return tuple(ExamplesInfo(*key, *entry) for key, entry in sorted(sums.items()))


def _codes(
    files: list[dict[str, Any]], partly: Mapping[tuple[str, str], Keep]
) -> tuple[CodesInfo, ...]:
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for file in files:
        if file["sae"] is None or file["corpus"] is None:
            continue
        entry = sums.setdefault((file["sae"], file["corpus"]), {"firings": 0})
        entry[file["kind"]] = entry.get(file["kind"], 0) + file["n_bytes"]
        if file["kind"] == "codes":
            entry["firings"] += file["n_rows"]
    return tuple(
        CodesInfo(
            sae,
            corpus,
            entry["firings"],
            entry.get("codes", 0),
            entry.get("postings", 0),
            entry.get("peaks", 0),
            "features" in entry,
            str(partly.get((sae, corpus), KEEP_ALL)),
        )
        for (sae, corpus), entry in sorted(sums.items())
    )


def _dense(files: list[dict[str, Any]]) -> tuple[DenseInfo, ...]:
    sums: dict[tuple[str, str, str, int], int] = {}
    for file in files:
        if file["kind"] == DENSE:
            key = (file["corpus"], file["model"], file["site"], file["layer"])
            sums[key] = sums.get(key, 0) + file["n_bytes"]
    return tuple(DenseInfo(*key, n_bytes) for key, n_bytes in sorted(sums.items()))


def _bytes_a_firing(codes: list[CodesInfo] | tuple[CodesInfo, ...]) -> dict[str, float | None]:
    codes = [c for c in codes if c.keep == str(KEEP_ALL)]
    n = sum(c.firings for c in codes)
    by_token = sum(c.codes_bytes for c in codes)
    by_feature = sum(c.postings_bytes for c in codes)
    sums = {
        "codes": by_token,
        "postings": by_feature,
        "both": by_token + by_feature,
        "peaks": sum(c.peaks_bytes for c in codes),
    }
    return {name: n_bytes / n if n else None for name, n_bytes in sums.items()}


def _codes_lines(lake: LakeInfo) -> list[str]:
    if not lake.codes:
        return []
    lines = [f"  {counted(lake.firings, 'firing')}{_weights(lake.bytes_a_firing())}"]
    width = max(len(c.sae) for c in lake.codes)
    corpus_width = max(len(c.corpus) for c in lake.codes)
    for c in lake.codes:
        state = "" if c.complete else "  (incomplete)"
        kept = "" if c.keep == str(KEEP_ALL) else f" kept (keep={c.keep})"
        lines.append(
            f"    {c.sae:<{width}}  {c.corpus:<{corpus_width}} {c.firings:>13,} firings"
            f"{kept}{_weights(c.bytes_a_firing())}{state}"
        )
    return lines


def _evaluation_line(e: EvaluationInfo) -> str:
    loss = "" if e.loss_spliced is None else f", loss {e.loss:.3f} -> {e.loss_spliced:.3f} nat"
    return (
        f"  {e.sae} on {e.corpus}, layer {e.layer}: FVU {e.fvu:.3f}, L0 {e.l0:.1f}, "
        f"{e.dead:,} dead{loss} ({counted(e.n_tokens, 'token')})"
    )


def _weights(each: dict[str, float | None]) -> str:
    if each["both"] is None:
        return ""
    return (
        f" at {each['codes']:.2f} B token-major + {each['postings']:.2f} feature-major = "
        f"{each['both']:.2f}, peaks {each['peaks']:.2f}"
    )
