"""Bytes and objects that an ingest leaves in a lake, from counts of rows, files and commits.

Bytes a row were measured, of synthetic firings of many widths and of the tiny model's
(`benchmarks/plan.py`, docs/scale.md); between what was measured they are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log2
from typing import Final
from urllib.parse import quote

import numpy as np

from scopelake.ingest.shapes import CoderShape

_CODES_AT: Final = (5.2, 6.7, 8.1, 10.1, 12.1, 14.1)
_CODES: Final = (3.04, 3.46, 3.47, 3.75, 4.02, 4.28)
"""Bytes a firing of `codes` by log2(width / L0): a token's features lie that far apart."""
_CODES_NARROW: Final = -0.30
"""Below 4,096 features, whose numbers go by dictionary."""
_NARROW: Final = 4_096

_POSTINGS_AT: Final = (5.2, 6.7, 8.1, 10.1, 12.1, 14.1)
_POSTINGS: Final = (2.96, 3.07, 3.20, 3.47, 4.00, 4.53)
"""Bytes a firing of `postings` by log2(width / L0), in contexts of 1,024 tokens."""
_POSITION_BIT: Final = 0.125
"""Less for each halving of the context's length, whose positions are that much shorter."""
_POSTINGS_FEATURE: Final = 3.4
"""Bytes for each feature that fires in a shard."""

_PEAK: Final = 3.9
_PEAK_FEATURE: Final = 9.0
"""Bytes for each feature that has peaks in a file."""
_SAMPLE: Final = 8.05

_BITS_AT: Final = (7, 8, 10, 12, 16, 23)
_BITS: Final = (-0.39, -0.19, 0.0, 0.24, 0.82, 1.65)
"""Bytes more or less a row, by mantissa bits of the activation."""

_TALLY: Final = 8.4
_TALLY_BIN: Final = 1.06
"""Bytes of `tallies` for each feature that fires in a piece, and for each of its bins; the tiny
model's coders in shards of 64 and of 1,000 contexts lie within 18 % of this."""

FILE_OVERHEAD: Final = {
    "codes": 620, "postings": 650, "peaks": 610, "samples": 730, "tallies": 1_800,
}  # fmt: skip
"""Bytes of a file beside its rows."""
_EMPTY_FILE: Final = 154
"""Bytes of a file without rows."""

_FEATURE: Final = 155
_FEATURE_BARE: Final = 53
"""Bytes of a feature's statistics, with and without the tokens that it promotes."""
_FEATURES_FILE: Final = 4_000

DENSE_RATIO: Final = 0.78
"""Compressed bytes over those of bfloat16, zstd at level 1 (docs/performance.md)."""

CONTEXT_TOKEN: Final = 3.2
"""Bytes of `contexts` for a token: ids, offsets, text; the standard library's source."""

FIRING_TABLES: Final = ("codes", "postings", "peaks", "samples")

TABLES: Final = (*FIRING_TABLES, "tallies", "features")
"""Those whose files are of one coder; tallies only where not all firings are kept."""

_CHECKPOINT_EVERY: Final = 10
_LOG_ENTRY: Final = {"codes": 590, "postings": 590, "peaks": 590, "samples": 650, "tallies": 590,
                     "features": 1_020}  # fmt: skip
"""Bytes of a file's entry in a Delta log, without the coder's name, which is in it three times."""
_CHECKPOINT_ENTRY: Final = 170
_FILES_ROW: Final = 90
_FILES_ROW_MERGED: Final = 60
"""Bytes of a row of the files table, in a file of some and of many; above, of an entry in a
checkpoint."""
_MERGED_AT: Final = 64
"""Files of a table without partitions at which its rows are written as one again."""
_SMALL_FILE: Final = 3_300
"""A file of few rows of a catalogue table."""


@dataclass(frozen=True)
class TableSize:
    """What an ingest adds to one table, to dense activations or to the catalogue."""

    table: str
    rows: float
    n_bytes: float
    objects: int

    def __add__(self, other: TableSize) -> TableSize:
        return TableSize(
            self.table,
            self.rows + other.rows,
            self.n_bytes + other.n_bytes,
            self.objects + other.objects,
        )


def extra_bytes(bits: int) -> float:
    """Return bytes a row beside those at 10 mantissa bits."""
    return float(np.interp(bits, _BITS_AT, _BITS))


def overhead(table: str, rows: float, n_files: int) -> float:
    """Return the bytes of files beside those of their rows."""
    return n_files * (FILE_OVERHEAD[table] if rows else _EMPTY_FILE)


def codes_bytes(coder: CoderShape, firings: float, n_files: int, bits: int) -> float:
    """Return the bytes of a coder's `codes`."""
    each = float(np.interp(log2(coder.width / coder.l0), _CODES_AT, _CODES))
    each += (_CODES_NARROW if coder.width < _NARROW else 0) + extra_bytes(bits)
    return firings * each + overhead("codes", firings, n_files)


def postings_bytes(
    coder: CoderShape, firings: float, n_files: int, bits: int, context_length: int
) -> float:
    """Return the bytes of a coder's `postings`."""
    each = float(np.interp(log2(coder.width / coder.l0), _POSTINGS_AT, _POSTINGS))
    each += extra_bytes(bits) - _POSITION_BIT * max(0.0, log2(1024 / context_length))
    fires = n_files * coder.width * (1 - exp(-firings / max(n_files, 1) / coder.width))
    return firings * each + fires * _POSTINGS_FEATURE + overhead("postings", firings, n_files)


def peaks_bytes(coder: CoderShape, rows: float, n_files: int, bits: int) -> float:
    """Return the bytes of a coder's `peaks`."""
    there = min(rows, n_files * coder.width)
    # A feature's entry is paid once for several rows; files with few rows of each have many.
    features = there * (1 - exp(-rows / max(there, 1.0)))
    of_features = features * _PEAK_FEATURE if coder.width >= _NARROW else 0.0
    return rows * (_PEAK + extra_bytes(bits)) + of_features + n_files * FILE_OVERHEAD["peaks"]


def samples_bytes(rows: float, n_files: int, bits: int) -> float:
    """Return the bytes of a coder's `samples`."""
    return rows * (_SAMPLE + extra_bytes(bits)) + n_files * FILE_OVERHEAD["samples"]


def tallies_bytes(rows: float, bins: float, n_files: int) -> float:
    """Return the bytes of a coder's `tallies`: features in each file, and bins of these."""
    return rows * _TALLY + bins * _TALLY_BIN + n_files * FILE_OVERHEAD["tallies"]


def features_bytes(coder: CoderShape) -> float:
    """Return the bytes of the statistics of a coder's features."""
    return coder.width * (_FEATURE if coder.has_readout else _FEATURE_BARE) + _FEATURES_FILE


def dense_bytes(width: int, n_tokens: int) -> float:
    """Return the bytes of a site's activations; behind the end of a context they are nothing."""
    return 2 * width * n_tokens * DENSE_RATIO


@dataclass(frozen=True)
class CommitCounts:
    """What an ingest commits."""

    commits: int
    """One for each shard."""
    files: dict[str, int]
    """Data files by table; dense shards as ``dense``."""
    names: dict[str, float]
    """Bytes of a coder's name, on average, percent-encoded."""
    versions: dict[str, int]
    """Delta version of each table before; a checkpoint is written every 10th."""
    is_new_run: bool
    """Whether coders or the model are to be put into the catalogue."""


def name_bytes(coders: list[CoderShape]) -> float:
    """Return the mean length of the coders' names in a Delta log."""
    return sum(len(quote(c.name, safe="")) for c in coders) / max(len(coders), 1)


def log_size(counts: CommitCounts) -> list[TableSize]:
    """Return what the Delta logs of all tables grow by: entries, and checkpoints."""
    commits, finish = counts.commits, 1 if counts.commits else 0
    per_table = {t: commits if counts.files.get(t) else 0 for t in TABLES}
    per_table["features"] = finish if counts.files.get("features") else 0
    per_table["files"] = commits + per_table["features"]
    per_table["snapshots"] = commits + 2 * finish
    per_table["runs"] = 2 * finish
    per_table |= dict.fromkeys(("saes", "models"), finish if counts.is_new_run else 0)
    logs = TableSize("delta logs", 0, 0, 0)
    checkpoints = TableSize("delta checkpoints", 0, 0, 0)
    for table, added in per_table.items():
        files, before = counts.files.get(table, 0), counts.versions.get(table, 0)
        entry = _LOG_ENTRY.get(table, 0) + 3 * counts.names.get(table, 0)
        logs += TableSize("", 0, added * 500 + files * entry, added)
        made = (before + 1 + added) // _CHECKPOINT_EVERY - (before + 1) // _CHECKPOINT_EVERY
        # Each lists every file so far: half of them on average.
        listed = files if files else min(added, _MERGED_AT)
        hint = 1 if made and before + 1 < _CHECKPOINT_EVERY else 0
        each = 12_000 + _CHECKPOINT_ENTRY * listed / 2
        checkpoints += TableSize("", 0, made * each, made + hint)
    return [logs, checkpoints]


def catalogue_size(counts: CommitCounts) -> TableSize:
    """Return what the tables without partitions grow by: files, snapshots, runs, saes, models."""
    finish = 1 if counts.commits else 0
    rows = sum(counts.files.values())
    adds_features = 1 if counts.files.get("features") else 0
    of_files, of_snapshots = counts.commits + adds_features, counts.commits + 2 * finish
    others = 2 * finish + (2 * finish if counts.is_new_run else 0)
    objects = of_files + of_snapshots + others
    # Every 64th commit writes all rows so far anew, and what it replaces stays until a vacuum.
    again = rows / 2 * (of_files // _MERGED_AT) * _FILES_ROW_MERGED
    return TableSize("catalogue", rows, objects * _SMALL_FILE + rows * _FILES_ROW + again, objects)
