"""What every view holds, column by column: the one place that says so.

From here come DuckDB's comments, ``lake.views()``, ``scopelake sql --describe`` and docs/sql.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scopelake.names import KINDS, ROLES, SITES
from scopelake.query.literals import literal
from scopelake.store.running import PEAKS_DEPTH, SAMPLES_PER_BAND


@dataclass(frozen=True)
class ViewText:
    """What a view is and what each of its columns means."""

    about: str
    columns: dict[str, str]
    """In the order of the view."""


_SAE: Final = "name of the SAE: <repo>/<family>/<folder>"
_CORPUS: Final = "name of the corpus"
_CONTEXT: Final = "number of the context in its corpus, from 0"
_POSITION: Final = "number of the token in its context, from 0"
_FEATURE: Final = "index of the feature in its SAE, from 0"
_ACTIVATION: Final = "strength of the firing, in the units of the SAE's own code; above 0"
_KINDS: Final = ", ".join(KINDS)
_ROLES: Final = ", ".join(ROLES)
_DOCUMENT: Final = "id of the document; null in a packed context"
_INDEX: Final = "number of the document in its corpus, from 0; null in a packed context"
_PART: Final = "which window of its document the context is, from 0; null in a packed context"
_METADATA: Final = "what the source says of the document, a JSON object; null in a packed context"
_KIND: Final = f"what the token is: {_KINDS}"
_SOURCE: Final = "ingest, or examples.safetensors: the examples that the SAE's publisher gives"
_RUN: Final = "id of the run that made it"
_DIGEST: Final = "hash of its files"

VIEWS: Final[dict[str, ViewText]] = {
    "contexts": ViewText(
        "a window of tokens that was given to the model",
        {
            "corpus": _CORPUS,
            "context": _CONTEXT,
            "document": _DOCUMENT,
            "document_index": _INDEX,
            "part": _PART,
            "char_start": "first character in the document; null in a packed context",
            "char_end": "one past the last character in the document; null in a packed context",
            "text": "the text, without a BOS that was added",
            "n_tokens": "tokens, BOS included",
            "token_ids": "ids of the tokens in the tokenizer",
            "token_starts": "first character of each token in text; it ends where the next starts",
            "roles": f"who speaks each token: {_ROLES}",
            "turns": "number of the chat message of each token, from 0; -1 where there is none",
            "kinds": f"what each token is: {_KINDS}",
            "metadata": _METADATA,
            "documents": "of a packed context its documents in order: position of the first "
            "token, document, document_index, part, char_start, char_end, metadata; else null",
        },
    ),
    "tokens": ViewText(
        "a token of a context",
        {
            "corpus": _CORPUS,
            "context": _CONTEXT,
            "position": _POSITION,
            "token_id": "id in the tokenizer",
            "token": "its text; empty if a later token has the whole of a character",
            "role": f"who speaks it: {_ROLES}",
            "turn": "number of the chat message, from 0; -1 where there is none",
            "kind": _KIND,
            "document": "id of the document",
        },
    ),
    "codes": ViewText(
        "a firing, sorted by context: for what fired here",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "context": _CONTEXT,
            "position": _POSITION,
            "feature": _FEATURE,
            "activation": _ACTIVATION,
            "kind": _KIND,
        },
    ),
    "postings": ViewText(
        "the same firings, sorted by feature: for where it fired",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "feature": _FEATURE,
            "context": _CONTEXT,
            "position": _POSITION,
            "activation": _ACTIVATION,
            "kind": _KIND,
        },
    ),
    "peaks": ViewText(
        f"the {PEAKS_DEPTH} strongest contexts of a feature, BOS left out",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "feature": _FEATURE,
            "rank": "0 for the strongest",
            "context": _CONTEXT,
            "position": "of the strongest firing in the context; the first of equal ones",
            "activation": _ACTIVATION,
            "source": _SOURCE,
        },
    ),
    "samples": ViewText(
        f"{SAMPLES_PER_BAND} random firings of a feature in each power of two, BOS left out",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "feature": _FEATURE,
            "band": "0 to 31: activations from 2^(band - 8) to its double; outliers at the ends",
            "priority": "hash of the firing; the lowest of a band are the sample",
            "context": _CONTEXT,
            "position": _POSITION,
            "activation": _ACTIVATION,
        },
    ),
    "tallies": ViewText(
        "exact sums of ingests that did not keep all firings, BOS left out",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "feature": _FEATURE,
            "total": "sum of activations",
            "max": "highest activation",
            "bins": "upper 14 bits of float32 activations: sign, exponent, 5 of the mantissa",
            "counts": "firings in each of the bins",
        },
    ),
    "features": ViewText(
        "statistics of a feature on a corpus, BOS left out",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "feature": _FEATURE,
            "firings": "number of firings",
            "density": "share of tokens on which it fires, 0 to 1",
            "mean": "mean activation of its firings",
            "max": "highest activation",
            "p10": "activation that 10 % of its firings lie below",
            "p50": "median activation of its firings",
            "p90": "activation that 90 % of its firings lie below",
            "p99": "activation that 99 % of its firings lie below",
            "histogram": "firings in 32 bins, a power of two each, from 2^-8; outliers at the ends",
            "n_tokens": "tokens that were looked at: what density divides by",
            "decoder_norm": "Euclidean length of its row of the decoder",
            "top_tokens": "ids of the tokens that its decoder promotes most",
            "top_logits": "logits of top_tokens through the unembedding, for an activation of 1",
            "bottom_tokens": "ids of the tokens that it demotes most",
            "bottom_logits": "logits of bottom_tokens, lowest first",
            "encoder_norm": "Euclidean length of its column of the encoder; null in older lakes",
            "source": _SOURCE,
        },
    ),
    "neighbors": ViewText(
        "the features of an SAE whose decoder directions are nearest to a feature's",
        {
            "sae": _SAE,
            "other_sae": "the SAE of the nearest features; it may be the same",
            "feature": _FEATURE,
            "rank": "from 0, the nearest",
            "other_feature": "index of the nearest feature in other_sae, from 0",
            "cosine": "of the two directions, -1 to 1",
        },
    ),
    "evaluations": ViewText(
        "how well an SAE reconstructs, on a sample without BOS",
        {
            "sae": _SAE,
            "corpus": _CORPUS,
            "layer": "layer that is reconstructed, from 0",
            "run": _RUN,
            "n_contexts": "contexts in the sample",
            "n_tokens": "tokens in the sample",
            "fvu": "fraction of variance unexplained: 0 is perfect",
            "l0": "mean number of features that fire on a token",
            "dead": "features of this layer's encoder that fired on none of the tokens",
            "loss": "of the model, in nats a token",
            "loss_spliced": "the same with the reconstruction put in place, in nats a token; null "
            "for SAEs of several layers",
        },
    ),
    "labels": ViewText(
        "an explanation of a feature",
        {
            "sae": _SAE,
            "feature": _FEATURE,
            "label": "the explanation",
            "source": "who gave it",
        },
    ),
    "saes": ViewText(
        "an SAE, transcoder, crosscoder or CLT of the lake",
        {
            "sae": _SAE,
            "repo": "where it was published",
            "family": "its folder there, for example resid_post",
            "folder": "its folder in that",
            "type": "sae, transcoder, crosscoder or clt",
            "site": f"where in the layer it reads: {', '.join(SITES)}",
            "layer": "layer it reads, from 0; the first of several",
            "layers": "all layers it reads",
            "features_per_layer": "feature f is of layer layers[f // features_per_layer], from 0",
            "width": "number of features",
            "d_in": "width of the activations it reads",
            "d_out": "width of the activations it writes",
            "l0": "features a token fires, as published",
            "affine": "whether it has an affine skip connection",
            "model": "model it was trained for",
            "hook_in": "where it reads, in the publisher's words",
            "hook_out": "where it writes, in the publisher's words",
            "digest": _DIGEST,
            "n_bytes": "bytes of its files",
        },
    ),
    "models": ViewText(
        "a model that was run",
        {
            "model": "its name",
            "revision": "of its repository",
            "digest": _DIGEST,
            "architecture": "its class",
            "n_layers": "number of decoder layers",
            "d_model": "width of its residual stream",
            "dtype": "number format of its weights",
        },
    ),
    "corpora": ViewText(
        "a corpus: documents, tokenized once",
        {
            "corpus": _CORPUS,
            "source": "what it was read from",
            "chat": "whether its documents are chats",
            "tokenizer": "name of the tokenizer",
            "tokenizer_digest": "hash of the tokenizer",
            "chat_template_digest": "hash of the chat template; null for plain text",
            "context_length": "most tokens of a context, BOS included",
            "shard_contexts": "contexts of a shard, the unit of commit",
            "n_documents": "number of documents",
            "n_split": "documents that are longer than a context",
            "n_contexts": "number of contexts",
            "n_tokens": "number of tokens, BOS included",
            "n_bos": "number of BOS tokens",
            "source_digest": "hash of the documents",
            "created_at": "when it was added, UTC",
            "bos": "where BOS was added: each context, each document, or none; null in lakes of "
            "older formats",
            "stride": "tokens from one window of a document to the next; null: no overlap",
            "packing": "whether contexts hold several documents",
            "duplicates": "whether equal documents were kept (keep) or left out (drop)",
            "n_duplicates": "number of documents that were equal to an earlier one",
            "context_ends": "one past the highest context, as added and after each append",
        },
    ),
    "runs": ViewText(
        "an ingest, encode or import",
        {
            "run": "id of the run",
            "corpus": _CORPUS,
            "model": "model that was run",
            "saes": "names of the SAEs",
            "dense": "dense activations that were stored: <site>/<layer>",
            "state": "running, complete, stopped, incomplete, interrupted or imported",
            "n_shards": "shards of the corpus",
            "activation_bits": "bits of the mantissa that activations keep",
            "relative_error": "most that rounding to these bits changes an activation, relative",
            "device": "where the model ran",
            "dtype": "number format in which it ran",
            "versions": "versions of packages, a JSON object",
            "config": "what was asked for, a JSON object",
            "started_at": "UTC",
            "finished_at": "UTC; null while it runs",
            "tokens": "tokens of the last call, which an interrupted run has several of",
            "firings": "firings of the last call",
            "n_bytes": "bytes written by the last call",
            "seconds": "duration of the last call, in seconds",
        },
    ),
    "files": ViewText(
        "a data file of the snapshot",
        {
            "path": "relative to the lake",
            "kind": "the table that it is of, or dense",
            "corpus": _CORPUS,
            "sae": _SAE,
            "model": "of dense activations",
            "site": "of dense activations",
            "layer": "of dense activations, from 0",
            "shard": "whose it is; null if it holds several shards, or none",
            "run": _RUN,
            "n_rows": "rows; of dense activations contexts",
            "n_bytes": "size of the file",
            "checksum": "XXH3-128 of its bytes",
        },
    ),
    "merged": ViewText(
        "a shard in a file of codes that compaction made of several",
        {
            "path": "of the file, relative to the lake",
            "sae": _SAE,
            "corpus": _CORPUS,
            "shard": "number of the shard",
        },
    ),
    "snapshots": ViewText(
        "a version of the lake, up to the one that is read",
        {
            "snapshot": "its number, from 1",
            "created_at": "UTC",
            "reason": "what made it",
            "run": "id of the run that made it; null for others",
            "versions": "the Delta version of each table",
        },
    ),
    "vocabulary": ViewText(
        "a token of a tokenizer, as it is spelt in the lake's contexts",
        {
            "tokenizer": "name of the tokenizer",
            "token_id": "id in the tokenizer",
            "token": "its text; null if the lake does not tell: it was only seen as part of a "
            "character, or with different texts",
            "n_tokens": "how often it is in the contexts",
        },
    ),
}
"""By view, in the order in which users read of them."""


def comment_statements(*views: str) -> list[str]:
    """Return SQL that tells DuckDB what views, all if none is named, and their columns are."""
    made = []
    for view in views or VIEWS:
        text = VIEWS[view]
        made.append(f"COMMENT ON VIEW main.{view} IS {literal(text.about)}")
        made += [
            f"COMMENT ON COLUMN main.{view}.{name} IS {literal(about)}"
            for name, about in text.columns.items()
        ]
    return made
