"""The macros of SQL users: what the verbs answer, as tables that a query can go on with.

All of it is SQL text, so that a plain DuckDB client has the same (`scopelake sql --init`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scopelake.query.facts import Facts, fact_statements
from scopelake.query.macro_bodies import bodies
from scopelake.query.views import PRIVATE


@dataclass(frozen=True)
class Macro:
    """A macro that users call."""

    name: str
    arguments: str
    """With their defaults, as DuckDB takes them."""
    about: str
    body: str
    """``FROM`` a private macro or an expression, over the arguments."""
    tables: tuple[str, ...]
    """Tables that it reads."""
    is_table: bool = True

    @property
    def call(self) -> str:
        """How a user writes it."""
        return f"{self.name}({self.arguments})"

    @property
    def statement(self) -> str:
        """The SQL that makes it."""
        kind = "TABLE " if self.is_table else ""
        return f"CREATE OR REPLACE MACRO main.{self.call} AS {kind}{self.body}"


MACROS: Final = (
    Macro(
        "top_contexts",
        "layer, feature, k := 20, site := 'resid_post', sae := NULL, corpus := NULL, around := 16",
        "the contexts in which a feature of the SAE of a layer is strongest, BOS left out; "
        "site counts only where sae, a name or an ending of one, is not given",
        f"FROM {PRIVATE}.top_contexts(layer, site, sae, feature, k, corpus, around)",
        ("peaks", "postings", "contexts", "runs"),
    ),
    Macro(
        "top_contexts_of",
        "sae, feature, k := 20, corpus := NULL, around := 16",
        "the same, of an SAE by its name or an ending of it that only one has",
        f"FROM {PRIVATE}.top_contexts(NULL, NULL, coalesce(sae, ''), feature, k, corpus, around)",
        ("peaks", "postings", "contexts", "runs"),
    ),
    Macro(
        "features_at",
        "context, pos, corpus := NULL, sae := NULL, k := NULL",
        "what fired at a token, or with pos NULL in a context; at most k of each SAE and token",
        f"FROM {PRIVATE}.features_at(context, pos, corpus, sae, k)",
        ("codes", "contexts", "saes", "files", "merged", "corpora"),
    ),
    Macro(
        "feature_card",
        "sae, feature, corpus := NULL",
        "the statistics of a feature, BOS left out: on all corpora together (corpus is null; "
        "quantiles only where there is one), then on each",
        f"FROM {PRIVATE}.feature_card(coalesce(sae, ''), feature, corpus)",
        ("features", "runs", "saes", "labels"),
    ),
    Macro(
        "coactive",
        "sae, feature, k := 20, corpus := NULL, other_sae := NULL",
        "the features, of the same SAE or of other_sae, that fire on the tokens on which a feature "
        "fires, BOS left out; by how often, times PMI in bits",
        f"FROM {PRIVATE}.coactive(coalesce(sae, ''), feature, k, corpus, "
        "coalesce(other_sae, sae, ''))",
        ("codes", "postings", "features"),
    ),
    Macro(
        "neighbors",
        "sae, feature, k := 20, other_sae := NULL",
        "the features whose decoder directions are nearest to a feature's, of all SAEs that it was "
        "compared with or of other_sae",
        f"FROM {PRIVATE}.neighbors_of(coalesce(sae, ''), feature, k, other_sae)",
        ("neighbors", "saes"),
    ),
    Macro(
        "decode",
        "token_ids, tokenizer := NULL",
        "token ids as text, as they are spelt in the lake's contexts; U+FFFD for each whose text "
        "the lake does not tell",
        f"{PRIVATE}.decode(token_ids, {PRIVATE}.tokenizer_of(tokenizer))",
        ("contexts", "corpora"),
        is_table=False,
    ),
)
"""In the order in which users read of them."""


def macro_statements(facts: Facts) -> list[str]:
    """Return the statements that make every macro, in order."""
    made = bodies(any_partial=any(sae.partial for sae in facts.saes))
    private = [f"CREATE OR REPLACE MACRO {PRIVATE}.{name} AS {sql}" for name, sql in made.items()]
    return [*fact_statements(facts), *private, *(macro.statement for macro in MACROS)]
