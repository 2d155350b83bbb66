"""Writing of data files; what they hold is invisible until their receipts are committed."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scopelake.errors import InvalidArgumentError
from scopelake.names import check_name
from scopelake.store.firings import Firings, peaks, ranked, samples
from scopelake.store.parquet import delta_stats, write_parquet
from scopelake.store.precision import round_mantissa
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND, Running, Selects
from scopelake.store.schema import PARTITIONS, SCHEMAS, SORTED_BY, file_schema
from scopelake.store.tallies import tally


def write_firings(
    root: Root,
    firings: Firings,
    *,
    sae: str,
    corpus: str,
    shard: int,
    run: str,
    bits: int,
    running: Selects | None = None,
    kept: npt.NDArray[np.int64] | None = None,
    scratch: Path | None = None,
) -> list[Receipt]:
    """Write a shard's firings of one coder in both orders, its peaks and its samples.

    Args:
        root: the lake's.
        firings: in any order; those sorted token-major already are not sorted again.
        sae: the coder's name.
        corpus: the corpus's name.
        shard: number of the shard.
        run: the run that writes.
        bits: mantissa bits kept of an activation, 1 to 23.
        running: what the lake holds of the coder on the corpus, which spares peaks and samples
            that cannot count any more; None: nothing is known.
        kept: contexts whose firings are stored; the others' are in peaks, samples and tallies
            only. None: all.
        scratch: as in `write_parquet`.

    Returns:
        The receipts of a codes, a postings, a peaks and a samples file, also without firings; with
        `kept` also of a tallies file.

    Raises:
        InvalidArgumentError: a value is NaN, infinite or negative where it must not be, an
            address occurs twice, or `bits` is out of range.
    """
    check_name("corpus", corpus)
    rounded = Firings(
        firings.context,
        firings.position,
        firings.feature,
        round_mantissa(firings.activation, bits),
        firings.kind,
    )
    rounded.check()
    by_token = rounded.token_major()
    _check_unique(by_token)
    partition = {"sae": sae, "corpus": corpus}

    def write(table: str, rows: pa.Table, stats: str | None = None) -> Receipt:
        return write_parquet(
            root, table, rows, partition, run=run, shard=shard, stats=stats, scratch=scratch
        )

    def stored(table: str, ordered: Firings) -> pa.Table:
        held = ordered if kept is None else ordered.take(np.isin(ordered.context, kept))
        return _table(table, held)

    # The Parquet encoder leaves the interpreter lock: one order is written while the other
    # is sorted.
    with ThreadPoolExecutor(max_workers=1) as pool:
        rows = stored("codes", by_token)
        stats = delta_stats(rows)  # of either order
        codes = pool.submit(write, "codes", rows, stats)
        by_feature = by_token.feature_major()
        postings = write("postings", stored("postings", by_feature), stats)
        strongest, sampled = (running or Running(_width(by_feature))).select(by_feature, shard)
        derived = [write("peaks", strongest), write("samples", sampled)]
        derived += [write("tallies", tally(by_feature))] if kept is not None else []
        return [codes.result(), postings, *derived]


def write_examples(root: Root, firings: Firings, *, sae: str, corpus: str, run: str) -> Receipt:
    """Write published firings of a range of features as peaks, all of them, lossless.

    Raises:
        InvalidArgumentError: a value is NaN, infinite or negative where it must not be, or an
            address occurs twice.
    """
    firings.check()
    _check_unique(firings.token_major())
    partition = {"sae": sae, "corpus": check_name("corpus", corpus)}
    return write_parquet(root, "peaks", ranked(firings), partition, run=run)


def write_merged(
    root: Root, firings: Firings, *, table: str, partition: dict[str, str], run: str
) -> Receipt:
    """Write a range of features as one file of ``postings``, ``peaks`` or ``samples``."""
    ordered = firings.feature_major()
    if table == "peaks":
        rows = peaks(ordered, PEAKS_DEPTH)
    elif table == "samples":
        rows = samples(ordered, SAMPLES_PER_BAND)
    else:
        rows = _table(table, ordered)
    return write_parquet(root, table, rows, partition, run=run)


def discard(root: Root, receipts: Iterable[Receipt]) -> None:
    """Remove files that will not be committed."""
    for receipt in receipts:
        root.delete(receipt.path)


def write_contexts(root: Root, table: pa.Table, corpus: str, run: str) -> list[Receipt]:
    """Write contexts of one corpus, in the contexts table's schema, sorted by context.

    Raises:
        InvalidArgumentError: the columns are not those of the table, another corpus is among the
            rows, or they are not sorted.
    """
    check_name("corpus", corpus)
    rows = _file_rows("contexts", table, {"corpus": corpus})
    return [write_parquet(root, "contexts", rows, {"corpus": corpus}, run=run)]


def write_features(
    root: Root, table: pa.Table, sae: str, corpus: str, run: str, scratch: Path | None = None
) -> Receipt:
    """Write the statistics of every feature of a coder on a corpus, sorted by feature.

    Args:
        root: the lake's.
        table: a row for each feature.
        sae: the coder.
        corpus: the corpus.
        run: the run that writes.
        scratch: as in `write_parquet`.

    Raises:
        InvalidArgumentError: the columns are not those of the features table, rows of another
            coder or corpus are among them, or they are not sorted.
    """
    partition = {"sae": sae, "corpus": check_name("corpus", corpus)}
    rows = _file_rows("features", table, partition)
    return write_parquet(root, "features", rows, partition, run=run, scratch=scratch)


def write_neighbors(root: Root, table: pa.Table, sae: str, other_sae: str, run: str) -> Receipt:
    """Write the nearest features of each feature of `sae` among those of `other_sae`.

    Args:
        root: the lake's.
        table: feature, rank, other_feature, cosine, sorted by feature and rank; 0 rows or more.
        sae: whose features have neighbors.
        other_sae: whose features they are.
        run: what it was made of and how.

    Raises:
        InvalidArgumentError: the columns are not those of the neighbors table, or the rows are not
            in order, each once.
    """
    partition = {"sae": sae, "other_sae": other_sae}
    rows = _file_rows("neighbors", table, partition)
    return write_parquet(root, "neighbors", rows, partition, run=run)


def write_labels(root: Root, table: pa.Table, sae: str) -> Receipt:
    """Write all labels of a coder.

    Args:
        root: the lake's.
        table: feature, label, source, sorted by feature; a feature may have several.
        sae: the coder.
    """
    schema = file_schema("labels")
    rows = table.select(schema.names).cast(schema)
    return write_parquet(root, "labels", rows, {"sae": sae}, run="labels")


def _width(by_feature: Firings) -> int:
    return int(by_feature.feature[-1]) + 1 if len(by_feature) else 0


def _table(name: str, firings: Firings) -> pa.Table:
    schema = file_schema(name)
    return pa.table([pa.array(getattr(firings, c)) for c in schema.names], schema=schema)


def _check_unique(by_token: Firings) -> None:
    same: Any = np.ones(max(len(by_token) - 1, 0), dtype=bool)
    for column in (by_token.context, by_token.position, by_token.feature):
        same &= column[1:] == column[:-1]
    if same.any():
        at = int(np.argmax(same))
        raise InvalidArgumentError(
            f"feature {by_token.feature[at]} fires twice at context {by_token.context[at]} "
            f"position {by_token.position[at]}; a firing has one activation; check the encoder"
        )


def _file_rows(name: str, table: pa.Table, partition: dict[str, str]) -> pa.Table:
    """Check rows and strip the partition columns, which may be absent already."""
    wanted = file_schema(name)
    missing = [c for c in wanted.names if c not in table.column_names]
    unknown = [c for c in table.column_names if c not in SCHEMAS[name].names]
    if missing or unknown:
        raise InvalidArgumentError(
            f"rows for table {name} lack {missing or 'nothing'} and have unknown columns "
            f"{unknown or 'none'}; give the columns of SCHEMAS[{name!r}]"
        )
    for column in PARTITIONS[name]:
        if column in table.column_names:
            values = pc.unique(table[column]).to_pylist()
            if any(value != partition[column] for value in values):
                raise InvalidArgumentError(
                    f"rows for table {name} have {column} {values}; they are to be written as "
                    f"{partition[column]!r}; write each {column} by itself"
                )
    rows = table.select(wanted.names).cast(wanted)
    if not _is_ascending([rows[column].to_numpy() for column in SORTED_BY[name]]):
        raise InvalidArgumentError(
            f"rows for table {name} are not in order of {', '.join(SORTED_BY[name])}, each once; "
            "sort them"
        )
    return rows


def _is_ascending(keys: list[npt.NDArray[Any]]) -> bool:
    """Whether rows are in order of their keys, the first of most weight, and none comes twice."""
    n = max(len(keys[0]) - 1, 0)
    later, same = np.zeros(n, bool), np.ones(n, bool)
    for key in keys:
        later |= same & (key[1:] > key[:-1])
        same &= key[1:] == key[:-1]
    return bool(later.all())
