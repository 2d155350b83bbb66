"""SQL of the private macros that answer; what users call is in `macros`.

Their arguments end in ``_``, so that no column is taken for one of them. All conditions on SAE,
corpus and feature are constants once a query is planned, so that files are left out by statistics.
"""

from __future__ import annotations

from typing import Final

from scopelake.names import KIND_BOS
from scopelake.query.coactive_sql import coactive_sql
from scopelake.query.views import PRIVATE, piece
from scopelake.store.running import PEAKS_DEPTH

_CHOICE: Final = "(layer_, site_, sae_, corpus_)"
_QUANTILES: Final = ("p10", "p50", "p90", "p99")
_OF_DECODER: Final = (
    "decoder_norm", "encoder_norm", "top_tokens", "top_logits", "bottom_tokens", "bottom_logits",
)  # fmt: skip
_NOT_BOS: Final = f"kind <> {KIND_BOS}"
_OF_FEATURE: Final = (
    f"f.sae = {PRIVATE}.sae_of{_CHOICE} AND f.feature = feature_ "
    "AND (corpus_ IS NULL OR f.corpus = corpus_)"
)


def _failing(why: str, columns: int) -> str:
    """A row that is there only if something is to be refused, which then ends the query.

    It stands beside the answer: a condition on rows is not looked at where there are none.
    """
    nulls = ", ".join(["NULL"] * columns)
    return (
        f"SELECT {nulls} FROM (SELECT {why} AS why) "
        "WHERE CASE WHEN why IS NULL THEN false ELSE error(why) END"
    )


def _top_contexts(*, any_partial: bool) -> str:
    """Without the parts for what is not known whole, where all is: each scan takes time to plan."""
    partial = f"list_contains({PRIVATE}.partial_on{_CHOICE}, f.corpus)" if any_partial else "false"
    columns = "f.corpus, f.context, f.position, f.activation"
    why = f"""coalesce({PRIVATE}.too_few(k_, 'contexts'),
  CASE WHEN around_ IS NULL OR around_ < 0
  THEN 'around=' || coalesce(CAST(around_ AS VARCHAR), 'NULL')
  || ' was asked for; it is a number of tokens; give 0 or more' END,
  {PRIVATE}.refusal(layer_, site_, sae_, feature_, corpus_),
  {PRIVATE}.too_deep(layer_, site_, sae_, corpus_, k_))"""
    of_peaks = f"""UNION ALL
    SELECT t.rank, f.position, max(f.activation)
    FROM {PRIVATE}.peaks f JOIN top t ON t.corpus = f.corpus AND t.context = f.context
    WHERE {_OF_FEATURE} AND t.is_partial GROUP BY t.rank, f.position"""
    return f"""TABLE
WITH top AS MATERIALIZED (
  SELECT CAST(row_number() OVER (ORDER BY f.activation DESC, f.corpus, f.context) - 1 AS INTEGER)
    AS rank, f.*, {partial} AS is_partial
  FROM (
    SELECT * FROM (
      SELECT {columns} FROM {PRIVATE}.peaks f
      WHERE {_OF_FEATURE} AND CASE WHEN k_ <= {PEAKS_DEPTH} THEN f.rank < k_ ELSE {partial} END
      UNION ALL
      SELECT {columns} FROM {PRIVATE}.postings f
      WHERE {_OF_FEATURE} AND k_ > {PEAKS_DEPTH} AND f.{_NOT_BOS}
    )
    QUALIFY row_number() OVER
      (PARTITION BY corpus, context ORDER BY activation DESC, position) = 1
    ORDER BY activation DESC, corpus, context LIMIT k_
  ) f
), fired AS (
  SELECT rank, map_from_entries(list({{'k': position, 'v': activation}})) AS activations
  FROM (
    SELECT t.rank, f.position, f.activation
    FROM {PRIVATE}.postings f JOIN top t ON t.corpus = f.corpus AND t.context = f.context
    WHERE {_OF_FEATURE} AND f.{_NOT_BOS} AND NOT t.is_partial
    {of_peaks if any_partial else ""}
  ) GROUP BY rank
), shown AS (
  SELECT t.*, c.* EXCLUDE (corpus, context), fired.activations,
    CAST(greatest(t.position - around_, 0) AS INTEGER) AS start,
    CAST(least(t.position + around_ + 1, c.n_tokens) AS INTEGER) AS stop
  FROM top t JOIN {PRIVATE}.contexts c ON c.corpus = t.corpus AND c.context = t.context
  LEFT JOIN fired ON fired.rank = t.rank
), answer AS (
  SELECT rank, {PRIVATE}.sae_of{_CHOICE} AS sae, corpus, context, position, activation,
    CAST(activation AS DOUBLE) AS value,
    CASE WHEN documents IS NULL THEN document ELSE
      documents[len(list_filter(documents, lambda d: d.position <= shown.position))].document END
      AS document,
    start, stop,
    list_transform(range(start + 1, stop + 1), lambda i: {piece("i")}) AS tokens,
    list_transform(range(start, stop), lambda i: CAST(coalesce(activations[CAST(i AS INTEGER)],
      CASE WHEN is_partial THEN NULL ELSE 0 END) AS FLOAT)) AS activations
  FROM shown
)
SELECT *, array_to_string(tokens, '') AS text FROM answer
UNION ALL
{_failing(why, 13)}
ORDER BY 1"""


def _features_at(*, any_partial: bool) -> str:
    """Of an SAE of which not all is kept, what is known of a context is known if anything is."""
    corpus = f"{PRIVATE}.one_corpus(corpus_)"
    choice = f"(NULL, NULL, sae_, {corpus})"
    of_sae = f"(sae_ IS NULL OR {{0}}.sae = {PRIVATE}.sae_of{choice})".format
    is_kept = f"""AND (NOT list_contains({PRIVATE}.partly_kept({corpus}), s.sae) OR EXISTS
      (SELECT 1 FROM {PRIVATE}.codes c
       WHERE c.sae = s.sae AND c.corpus = {corpus} AND c.context = context_))"""
    early = f"""coalesce({PRIVATE}.no_corpus(corpus_),
  CASE WHEN {corpus} IS NULL THEN 'a context was asked for without a corpus; the lake has '
  || array_to_string({PRIVATE}.corpora(), ', ') || '; name one with corpus := ...' END,
  CASE WHEN k_ < 1 THEN {PRIVATE}.too_few(k_, 'firings') END,
  CASE WHEN sae_ IS NOT NULL THEN {PRIVATE}.no_sae{choice} END)"""
    why = f"""coalesce(early, CASE
  WHEN n_tokens IS NULL
  THEN 'context ' || coalesce(CAST(context_ AS VARCHAR), 'NULL') || ' of corpus '''
  || {corpus} || ''' was asked for; there is none; the view contexts lists all'
  WHEN pos_ < 0 OR pos_ >= n_tokens
  THEN 'position ' || pos_ || ' of context ' || context_ || ' of ''' || {corpus}
  || ''' was asked for; it has positions 0 to ' || (n_tokens - 1) || '; choose one of them'
  WHEN NOT is_known
  THEN 'what fires in context ' || context_ || ' of corpus ''' || {corpus}
  || ''' was asked for; of no SAE that was meant the firings there are in the lake; ingest one '
  || 'there, or again to resume' END)"""
    return f"""TABLE
WITH here AS MATERIALIZED (
  SELECT c.* FROM {PRIVATE}.contexts c WHERE c.corpus = {corpus} AND c.context = context_
), fired AS (
  SELECT f.* FROM {PRIVATE}.codes f WHERE f.corpus = {corpus} AND f.context = context_
    AND (pos_ IS NULL OR f.position = pos_) AND {of_sae("f")}
  QUALIFY k_ IS NULL OR
    row_number() OVER (PARTITION BY f.sae, f.position ORDER BY f.activation DESC, f.feature) <= k_
), known AS (
  SELECT count(*) > 0 AS is_known FROM {PRIVATE}.shards s
  JOIN {PRIVATE}.corpora o ON o.corpus = s.corpus
  WHERE s.corpus = {corpus} AND s.shard = context_ // o.shard_contexts AND {of_sae("s")}
    {is_kept if any_partial else ""}
)
SELECT f.sae, s.layers[f.feature // s.features_per_layer + 1] AS layer, s.site, f.position,
  {piece("(f.position + 1)")} AS token, f.feature, f.activation,
  CAST(f.activation AS DOUBLE) AS score
FROM fired f JOIN {PRIVATE}.saes s ON s.sae = f.sae CROSS JOIN here
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM (SELECT {why} AS why FROM (SELECT {early} AS early),
  (SELECT max(here.n_tokens) AS n_tokens FROM here), known)
WHERE CASE WHEN why IS NULL THEN false ELSE error(why) END
ORDER BY 4, 7 DESC, 1, 6"""


def _feature_card() -> str:
    choice = "(NULL, NULL, sae_, corpus_)"
    sae = f"{PRIVATE}.sae_of{choice}"
    of_feature = _OF_FEATURE.replace(_CHOICE, choice)
    why = f"""coalesce({PRIVATE}.refusal(NULL, NULL, sae_, feature_, corpus_),
  CASE WHEN (SELECT count(*) FROM mine) = 0 THEN 'the card of feature ' || feature_ || ' of '
    || {sae} || ' was asked for; it has no statistics yet, which come when it is complete on a '
    || 'corpus; ingest again to resume' END)"""
    one = "CASE WHEN count(*) = 1 THEN max(f.{0}) END AS {0}".format
    counted = ("firings", "n_tokens", "density", "mean", "max", *_QUANTILES, "histogram")
    shown = (*counted, *_OF_DECODER, "source")
    return f"""TABLE
WITH mine AS MATERIALIZED (
  SELECT f.* FROM main.features f WHERE {of_feature}
), total AS (
  SELECT NULL AS corpus, sum(f.firings)::BIGINT AS firings, sum(f.n_tokens)::BIGINT AS n_tokens,
    sum(f.firings) / nullif(sum(f.n_tokens), 0) AS density,
    (sum(f.mean::DOUBLE * f.firings) / nullif(sum(f.firings), 0))::FLOAT AS mean,
    max(f.max) AS max, {", ".join(map(one, _QUANTILES))},
    list_transform(range(1, 33), lambda i:
      list_sum(list_transform(list(f.histogram), lambda h: h[i]))::BIGINT) AS histogram,
    {", ".join(f"any_value(f.{name}) AS {name}" for name in _OF_DECODER)},
    CASE WHEN count(DISTINCT f.source) = 1 THEN max(f.source) END AS source
  FROM mine f HAVING count(*) > 0
), cards AS (
  SELECT corpus, {", ".join(shown)} FROM total
  UNION ALL SELECT m.corpus, {", ".join(f"m.{name}" for name in shown)} FROM mine m
)
SELECT s.sae, s.layers[feature_ // s.features_per_layer + 1] AS layer, s.site,
  CAST(feature_ AS INTEGER) AS feature, c.*,
  (SELECT list(l.label ORDER BY l.source, l.label) FROM {PRIVATE}.labels l
   WHERE l.sae = {sae} AND l.feature = feature_) AS labels
FROM cards c JOIN {PRIVATE}.saes s ON s.sae = {sae}
UNION ALL
{_failing(why, 6 + len(shown))}
ORDER BY 5 NULLS FIRST"""


def _coactive() -> str:
    one, two = "(NULL, NULL, sae_, corpus_)", "(NULL, NULL, other_, corpus_)"
    sae, other = f"{PRIVATE}.sae_of{one}", f"{PRIVATE}.sae_of{two}"

    def is_shared(corpus: str) -> str:
        on = f"list_contains({PRIVATE}.corpora_of{{0}}, {corpus})".format
        return f"{on(one)} AND {on(two)} AND (corpus_ IS NULL OR {corpus} = corpus_)"

    uncounted = f"""(SELECT min(o.name) FROM (SELECT unnest({PRIVATE}.corpora()) AS name) o
    WHERE {is_shared("o.name")} AND o.name NOT IN
      (SELECT f.corpus FROM {PRIVATE}.features f
       WHERE f.sae = {other} AND {is_shared("f.corpus")}))"""
    why = f"""coalesce(CASE WHEN k_ < 1 THEN {PRIVATE}.too_few(k_, 'features') END,
  {PRIVATE}.refusal(NULL, NULL, sae_, feature_, corpus_), {PRIVATE}.no_sae{two},
  {PRIVATE}.not_all{one}, {PRIVATE}.not_all{two},
  'what fires together was asked for; the statistics of ' || {other} || ' on corpus '''
  || {uncounted} || ''' are not written; ingest it there to the end')"""
    answer = coactive_sql(sae, "feature_", other, is_shared, "k_")
    return f"""TABLE
WITH found AS (SELECT {other} AS other_sae, a.* FROM ({answer}) a)
SELECT * FROM (SELECT * FROM found UNION ALL {_failing(why, 8)}) f
ORDER BY f.n_both * f.pmi DESC, f.n_both DESC, f.other_feature"""


def _neighbors_of() -> str:
    one, two = "(NULL, NULL, sae_, NULL)", "(NULL, NULL, other_, NULL)"
    sae, other = f"{PRIVATE}.sae_of{one}", f"{PRIVATE}.sae_of{two}"
    why = f"""coalesce({PRIVATE}.too_few(k_, 'features'),
  {PRIVATE}.refusal(NULL, NULL, sae_, feature_, NULL),
  CASE WHEN other_ IS NOT NULL THEN {PRIVATE}.no_sae{two} END,
  CASE WHEN NOT EXISTS (FROM {PRIVATE}.neighbors n WHERE n.sae = {sae}
      AND (other_ IS NULL OR n.other_sae = {other}))
  THEN 'the nearest features of ' || {sae} || ' were asked for; its decoder was compared with none'
    || CASE WHEN other_ IS NULL THEN '' ELSE ' of ' || {other} END
    || '; run scopelake add-neighbors first' END)"""
    return f"""TABLE
WITH found AS (
  SELECT n.other_sae, n.other_feature, n.cosine FROM {PRIVATE}.neighbors n
  WHERE n.sae = {sae} AND n.feature = feature_ AND (other_ IS NULL OR n.other_sae = {other})
  ORDER BY n.cosine DESC, n.other_sae, n.other_feature LIMIT k_
)
SELECT * FROM (SELECT * FROM found UNION ALL {_failing(why, 3)}) f
ORDER BY f.cosine DESC, f.other_sae, f.other_feature"""


_DECODE: Final = """CASE WHEN token_ids_ IS NULL THEN NULL ELSE coalesce((
  SELECT string_agg(coalesce(v.token, '\ufffd'), '' ORDER BY u.i)
  FROM (SELECT unnest(token_ids_) AS token_id, generate_subscripts(token_ids_, 1) AS i) u
  LEFT JOIN main.vocabulary v ON v.token_id = u.token_id AND v.tokenizer = tokenizer_), '') END"""

_TOKENIZER: Final = f"""CASE
  WHEN tokenizer_ IS NOT NULL AND list_contains({PRIVATE}.tokenizers(), tokenizer_) THEN tokenizer_
  WHEN tokenizer_ IS NULL AND len({PRIVATE}.tokenizers()) = 1 THEN {PRIVATE}.tokenizers()[1]
  ELSE error(CASE WHEN tokenizer_ IS NULL THEN 'decode was asked for without a tokenizer'
  ELSE 'tokenizer ''' || tokenizer_ || ''' was asked for' END || '; the lake has '
  || coalesce(nullif(array_to_string({PRIVATE}.tokenizers(), ', '), ''), 'none')
  || '; name one of them') END"""


def bodies(*, any_partial: bool) -> dict[str, str]:
    """Return the SQL of each macro by its call.

    Args:
        any_partial: whether of some SAE not all firings on some corpus are known.
    """
    return {
        "top_contexts(layer_, site_, sae_, feature_, k_, corpus_, around_)": _top_contexts(
            any_partial=any_partial
        ),
        "features_at(context_, pos_, corpus_, sae_, k_)": _features_at(any_partial=any_partial),
        "feature_card(sae_, feature_, corpus_)": _feature_card(),
        "coactive(sae_, feature_, k_, corpus_, other_)": _coactive(),
        "neighbors_of(sae_, feature_, k_, other_)": _neighbors_of(),
        "tokenizer_of(tokenizer_)": _TOKENIZER,
        "decode(token_ids_, tokenizer_)": _DECODE,
    }
