"""What features are about, in words: a label, and the tokens that their decoders promote."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import pyarrow as pa

from scopelake.query.card import Decode
from scopelake.query.connect import Connection
from scopelake.query.sql import run
from scopelake.query.views import PRIVATE
from scopelake.store.reading import Filters

N_PROMOTED: Final = 5

_FEW: Final = 2_000
"""Features up to which only theirs are looked up."""

_Key = tuple[str, int]


class FeatureTexts:
    """Looks up the words of features.

    Args:
        connection: from `connect`.
        decode: what gives token ids their text.
    """

    def __init__(self, connection: Connection, decode: Decode) -> None:
        self._connection, self._decode = connection, decode

    def added_to(self, table: pa.Table, saes: Collection[str], corpora: Sequence[str]) -> pa.Table:
        """Return a table of features with the columns ``label`` and ``promotes`` behind.

        Args:
            table: sae, feature.
            saes: those that it has.
            corpora: on which the SAEs were run; the first that tells is believed, since what a
                decoder promotes is the same on all.
        """
        keys = list(zip(table["sae"].to_pylist(), table["feature"].to_pylist(), strict=True))
        features = sorted({feature for _, feature in keys})
        # Of many it is faster to read all.
        only: Filters = [("feature", "in", features)] if len(features) <= _FEW else []
        labels = self._labels(saes, only)
        promoted = self._promoted(saes, corpora, only)
        table = table.append_column("label", pa.array([labels.get(k) for k in keys], pa.string()))
        listed = pa.array([promoted.get(k) for k in keys], pa.list_(pa.string()))
        return table.append_column("promotes", listed)

    def _labels(self, saes: Collection[str], only: Filters) -> dict[_Key, str]:
        """Return of each feature its first label, by source."""
        names = ("sae", "feature", "label", "source")
        rows = self._connection.rows("labels", names, [("sae", "in", sorted(saes)), *only])
        found: dict[_Key, str] = {}
        for row in rows.sort_by([("source", "ascending"), ("label", "ascending")]).to_pylist():
            found.setdefault((row["sae"], row["feature"]), row["label"])
        return found

    def _promoted(
        self, saes: Collection[str], corpora: Sequence[str], only: Filters
    ) -> dict[_Key, list[str]]:
        known = self._tokenizers()
        found: dict[_Key, list[str]] = {}
        for corpus in corpora:
            missing = sorted(set(saes) - {sae for sae, _ in found})
            if not missing:
                break
            filters = [("sae", "in", missing), ("corpus", "=", corpus), *only]
            rows = self._connection.rows("features", ("sae", "feature", "top_tokens"), filters)
            listed = [ids[:N_PROMOTED] for ids in rows["top_tokens"].to_pylist() if ids]
            unique = sorted({i for ids in listed for i in ids})
            texts = self._decode(*known[corpus], unique) if unique else None
            if texts is None:
                continue
            spelt: dict[int, str] = dict(zip(unique, texts, strict=True))
            for row in rows.to_pylist():
                if row["top_tokens"]:
                    ids: list[Any] = row["top_tokens"][:N_PROMOTED]
                    found[row["sae"], row["feature"]] = [spelt[i] for i in ids]
        return found

    def _tokenizers(self) -> dict[str, tuple[str, str]]:
        query = f"SELECT corpus, tokenizer, tokenizer_digest FROM {PRIVATE}.corpora"
        rows = run(self._connection, query, None, {"corpora": ()}).to_pylist()
        return {r["corpus"]: (r["tokenizer"], r["tokenizer_digest"]) for r in rows}
