"""The columns of every table, as Arrow schemas that include the partition columns."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

_STR = pa.string()
_I8, _I32, _I64 = pa.int8(), pa.int32(), pa.int64()
_F32, _F64 = pa.float32(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


SCHEMAS: Final[dict[str, pa.Schema]] = {
    "contexts": _schema(
        corpus=_STR,
        context=_I64,
        document=_STR,
        document_index=_I64,
        part=_I32,
        char_start=_I64,
        char_end=_I64,
        text=_STR,
        n_tokens=_I32,
        token_ids=pa.list_(_I32),
        token_starts=pa.list_(_I32),
        roles=pa.list_(_I8),
        turns=pa.list_(_I32),
        kinds=pa.list_(_I8),
        metadata=_STR,
        documents=pa.list_(
            pa.struct(
                [
                    ("position", _I32),
                    ("document", _STR),
                    ("document_index", _I64),
                    ("part", _I32),
                    ("char_start", _I64),
                    ("char_end", _I64),
                    ("metadata", _STR),
                ]
            )
        ),
    ),
    "codes": _schema(
        sae=_STR, corpus=_STR, context=_I64, position=_I32, feature=_I32, activation=_F32, kind=_I8
    ),
    "postings": _schema(
        sae=_STR, corpus=_STR, feature=_I32, context=_I64, position=_I32, activation=_F32, kind=_I8
    ),
    "peaks": _schema(
        sae=_STR, corpus=_STR, feature=_I32, rank=_I32, context=_I64, position=_I32, activation=_F32
    ),
    "samples": _schema(
        sae=_STR,
        corpus=_STR,
        feature=_I32,
        band=_I8,
        priority=_I32,
        context=_I64,
        position=_I32,
        activation=_F32,
    ),
    "tallies": _schema(
        sae=_STR,
        corpus=_STR,
        feature=_I32,
        total=_F64,
        max=_F32,
        bins=pa.list_(pa.int16()),
        counts=pa.list_(_I64),
    ),
    "features": _schema(
        sae=_STR,
        corpus=_STR,
        feature=_I32,
        firings=_I64,
        density=_F64,
        mean=_F32,
        max=_F32,
        p10=_F32,
        p50=_F32,
        p90=_F32,
        p99=_F32,
        histogram=pa.list_(_I64),
        n_tokens=_I64,
        decoder_norm=_F32,
        top_tokens=pa.list_(_I32),
        top_logits=pa.list_(_F32),
        bottom_tokens=pa.list_(_I32),
        bottom_logits=pa.list_(_F32),
        encoder_norm=_F32,
    ),
    "neighbors": _schema(
        sae=_STR, other_sae=_STR, feature=_I32, rank=_I32, other_feature=_I32, cosine=_F32
    ),
    "evaluations": _schema(
        sae=_STR,
        corpus=_STR,
        layer=_I32,
        run=_STR,
        n_contexts=_I64,
        n_tokens=_I64,
        fvu=_F64,
        l0=_F64,
        dead=_I64,
        loss=_F64,
        loss_spliced=_F64,
    ),
    "labels": _schema(sae=_STR, feature=_I32, label=_STR, source=_STR),
    "saes": _schema(
        sae=_STR,
        repo=_STR,
        family=_STR,
        folder=_STR,
        type=_STR,
        site=_STR,
        layer=_I32,
        layers=pa.list_(_I32),
        features_per_layer=_I32,
        width=_I32,
        d_in=_I32,
        d_out=_I32,
        l0=_F64,
        affine=pa.bool_(),
        model=_STR,
        hook_in=_STR,
        hook_out=_STR,
        digest=_STR,
        n_bytes=_I64,
    ),
    "models": _schema(
        model=_STR,
        revision=_STR,
        digest=_STR,
        architecture=_STR,
        n_layers=_I32,
        d_model=_I32,
        dtype=_STR,
    ),
    "corpora": _schema(
        corpus=_STR,
        source=_STR,
        chat=pa.bool_(),
        tokenizer=_STR,
        tokenizer_digest=_STR,
        chat_template_digest=_STR,
        context_length=_I32,
        shard_contexts=_I32,
        n_documents=_I64,
        n_split=_I64,
        n_contexts=_I64,
        n_tokens=_I64,
        n_bos=_I64,
        source_digest=_STR,
        created_at=_TIME,
        bos=_STR,
        stride=_I32,
        packing=pa.bool_(),
        duplicates=_STR,
        n_duplicates=_I64,
        context_ends=pa.list_(_I64),
    ),
    "runs": _schema(
        run=_STR,
        corpus=_STR,
        model=_STR,
        saes=pa.list_(_STR),
        dense=pa.list_(_STR),
        state=_STR,
        n_shards=_I32,
        activation_bits=_I32,
        relative_error=_F64,
        device=_STR,
        dtype=_STR,
        versions=_STR,
        config=_STR,
        started_at=_TIME,
        finished_at=_TIME,
        tokens=_I64,
        firings=_I64,
        n_bytes=_I64,
        seconds=_F64,
    ),
    "files": _schema(
        path=_STR,
        kind=_STR,
        corpus=_STR,
        sae=_STR,
        model=_STR,
        site=_STR,
        layer=_I32,
        shard=_I32,
        run=_STR,
        n_rows=_I64,
        n_bytes=_I64,
        checksum=_STR,
    ),
    "merged": _schema(path=_STR, sae=_STR, corpus=_STR, shard=_I32),
    "snapshots": _schema(
        snapshot=_I64,
        created_at=_TIME,
        reason=_STR,
        run=_STR,
        versions=pa.list_(pa.struct([("table", _STR), ("version", _I64)])),
    ),
}

PARTITIONS: Final[dict[str, tuple[str, ...]]] = {
    "contexts": ("corpus",),
    "codes": ("sae", "corpus"),
    "postings": ("sae", "corpus"),
    "peaks": ("sae", "corpus"),
    "samples": ("sae", "corpus"),
    "tallies": ("sae", "corpus"),
    "features": ("sae", "corpus"),
    "neighbors": ("sae", "other_sae"),
    "evaluations": (),
    "labels": ("sae",),
    "saes": (),
    "models": (),
    "corpora": (),
    "runs": (),
    "files": (),
    "merged": (),
    "snapshots": (),
}
"""Columns whose values are in the Delta log and the path, not inside the Parquet files."""

SORTED_BY: Final[dict[str, tuple[str, ...]]] = {
    "contexts": ("context",),
    "codes": ("context", "position", "feature"),
    "postings": ("feature", "context", "position"),
    "peaks": ("feature", "rank"),
    "samples": ("feature", "band", "priority", "context", "position"),
    "tallies": ("feature",),
    "features": ("feature",),
    "neighbors": ("feature", "rank"),
    "labels": ("feature",),
}
"""Order of the rows within each data file."""


def file_schema(table: str) -> pa.Schema:
    """Return the columns that are inside the table's Parquet files."""
    return pa.schema([f for f in SCHEMAS[table] if f.name not in PARTITIONS[table]])
