"""What a lake holds and what it weighs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from scopelake.store.lake_store import LakeStore
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
    codes_bytes: int
    postings_bytes: int
    peaks_bytes: int
    complete: bool
    """Whether every shard is there and the statistics are written."""


@dataclass(frozen=True)
class LakeInfo:
    """A lake at a snapshot."""

    path: str
    snapshot: int
    corpora: tuple[CorpusInfo, ...]
    models: tuple[str, ...]
    codes: tuple[CodesInfo, ...]
    dense_bytes: int
    total_bytes: int
    """Of all data files in the catalogue."""

    @property
    def firings(self) -> int:
        """Firings of all SAEs on all corpora."""
        return sum(c.firings for c in self.codes)

    def bytes_a_firing(self) -> dict[str, float]:
        """Return stored bytes for each firing: by order, of both orders, and of the peaks."""
        n = max(self.firings, 1)
        codes = sum(c.codes_bytes for c in self.codes) / n
        postings = sum(c.postings_bytes for c in self.codes) / n
        peaks = sum(c.peaks_bytes for c in self.codes) / n
        return {"codes": codes, "postings": postings, "both": codes + postings, "peaks": peaks}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {**asdict(self), "firings": self.firings, "bytes_a_firing": self.bytes_a_firing()}

    def to_text(self) -> str:
        """Return a summary of a few lines and a row for each SAE and corpus."""
        each = self.bytes_a_firing()
        lines = [f"{self.path}, snapshot {self.snapshot}, {self.total_bytes / 1e6:,.1f} MB"]
        lines += [
            f"  corpus {c.corpus}: {c.documents:,} documents, {c.contexts:,} contexts, "
            f"{c.tokens:,} tokens"
            for c in self.corpora
        ]
        lines += [f"  model {m}" for m in self.models]
        if self.codes:
            lines.append(
                f"  {self.firings:,} firings at {each['codes']:.2f} bytes token-major + "
                f"{each['postings']:.2f} feature-major = {each['both']:.2f}, peaks "
                f"{each['peaks']:.2f}"
            )
            width = max(len(c.sae) for c in self.codes)
            lines += [
                f"    {c.sae:<{width}}  {c.corpus:<12} {c.firings:>13,} firings"
                + ("" if c.complete else "  (incomplete)")
                for c in self.codes
            ]
        if self.dense_bytes:
            lines.append(f"  dense activations: {self.dense_bytes / 1e6:,.1f} MB")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.to_text())}</pre>"


def info(store: LakeStore, snapshot: Snapshot) -> LakeInfo:
    """Return what `store` holds at `snapshot`, from its catalogue alone."""
    corpora = store.read("corpora", snapshot).sort_by("corpus").to_pylist()
    files = store.read("files", snapshot, ["kind", "corpus", "sae", "n_rows", "n_bytes"])
    sums: dict[tuple[str, str], dict[str, int]] = {}
    dense = 0
    for row in files.to_pylist():
        if row["kind"] == "dense":
            dense += row["n_bytes"]
        elif row["sae"] is not None:
            entry = sums.setdefault((row["sae"], row["corpus"]), {})
            entry[row["kind"]] = entry.get(row["kind"], 0) + row["n_bytes"]
            if row["kind"] == "codes":
                entry["firings"] = entry.get("firings", 0) + row["n_rows"]
    return LakeInfo(
        path=str(store.root),
        snapshot=snapshot.id,
        corpora=tuple(
            CorpusInfo(r["corpus"], r["n_documents"], r["n_contexts"], r["n_tokens"])
            for r in corpora
        ),
        models=tuple(sorted(store.read("models", snapshot, ["model"])["model"].to_pylist())),
        codes=tuple(
            CodesInfo(
                sae,
                corpus,
                entry.get("firings", 0),
                entry.get("codes", 0),
                entry.get("postings", 0),
                entry.get("peaks", 0),
                "features" in entry,
            )
            for (sae, corpus), entry in sorted(sums.items())
        ),
        dense_bytes=dense,
        total_bytes=sum(files["n_bytes"].to_pylist()),
    )
