"""How much of an ingest's firings is kept: all, peaks and statistics alone, or a sample beside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import xxhash

from scopelake.errors import InvalidArgumentError
from scopelake.store.catalog import IMPORTED
from scopelake.store.lake_store import LakeStore
from scopelake.store.snapshot import Snapshot

_ALL, _PEAKS, _SAMPLE = "all", "peaks", "sample:"


@dataclass(frozen=True)
class Keep:
    """What is kept of the firings; peaks, samples and statistics are of all of them."""

    share: float
    """Of the documents, by a hash of their id: of these all firings are kept."""

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self.share == 1.0

    def has(self, document: str) -> bool:
        """Whether the firings of a document are kept."""
        return xxhash.xxh3_64_intdigest(document.encode()) < self.share * 2.0**64

    def __str__(self) -> str:
        return _ALL if self.is_all else f"{_SAMPLE}{self.share!r}" if self.share else _PEAKS


KEEP_ALL: Final = Keep(1.0)


def parse_keep(text: str) -> Keep:
    """Return what ``all``, ``peaks`` or ``sample:0.01`` keeps.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    fixed = {_ALL: 1.0, _PEAKS: 0.0}
    if text in fixed:
        return Keep(fixed[text])
    try:
        share = float(text.removeprefix(_SAMPLE)) if text.startswith(_SAMPLE) else -1.0
    except (ValueError, AttributeError):
        share = -1.0
    if not 0 < share < 1:
        raise InvalidArgumentError(
            f"keep={text!r} was asked for; give 'all', 'peaks' or 'sample:<share>' with a share of "
            "the documents between 0 and 1, such as 'sample:0.01'"
        )
    return Keep(share)


def partly_kept(store: LakeStore, snapshot: Snapshot) -> dict[tuple[str, str], Keep]:
    """Return, by (sae, corpus) of which not all firings are kept, what is."""
    rows = store.read("files", snapshot, ["sae", "corpus", "run"], [("kind", "=", "tallies")])
    made: dict[tuple[str, str], set[str]] = {}
    for row in rows.group_by(["sae", "corpus", "run"]).aggregate([]).to_pylist():
        made.setdefault((row["sae"], row["corpus"]), set()).add(row["run"])
    if not made:
        return {}
    columns = ["run", "saes", "corpus", "config"]
    runs = store.read("runs", snapshot, columns, [("state", "!=", IMPORTED)]).to_pylist()
    kept = {run["run"]: keep_of(run) for run in runs}
    # Only such a run writes tallies, and a coder has one way on a corpus.
    runs = [run for run in runs if not kept[run["run"]].is_all]
    return {
        (sae, corpus): kept[runs_of(runs, sae, corpus, of_coder)[0]["run"]]
        for (sae, corpus), of_coder in made.items()
    }


def keep_of(run: Mapping[str, Any]) -> Keep:
    """Return what a row of the runs table says of what is kept."""
    return parse_keep(json.loads(run["config"]).get("keep", _ALL))


def runs_of(
    runs: Iterable[dict[str, Any]], sae: str, corpus: str, made: set[str]
) -> list[dict[str, Any]]:
    """Return those runs of which a coder's files on a corpus are.

    Args:
        runs: rows of the runs table, without imports.
        sae: the coder.
        corpus: the corpus.
        made: runs that its files name; merged ones name none.
    """
    mine = [r for r in runs if r["corpus"] == corpus and sae in r["saes"]] if made else []
    # Merged files do not tell their runs: then any of the coder's may have made them.
    return [run for run in mine if run["run"] in made] or mine
