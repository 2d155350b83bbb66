"""What compare finds where there is nothing, and what it finds of what was planted.

Firings are bursty: whether a document has any, and how many, varies far more than tokens that are
drawn one by one would. A test that counts tokens takes each burst for many observations.
"""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
import pyarrow as pa
import pytest

from scopelake.names import KIND_BOS
from scopelake.query.compare import compare
from scopelake.query.compared_coders import Choice
from scopelake.query.connect import connect
from scopelake.query.document_windows import place_windows
from scopelake.query.rank_tests import discovery_rates, rank_sum, signed_rank
from scopelake.query.rate_intervals import Documents, rate_difference
from scopelake.query.resolve import list_saes
from scopelake.query.token_sets import TokenSet
from scopelake.store.commit import Writer
from scopelake.store.firings import Firings
from scopelake.store.lake_store import LakeStore
from scopelake.store.schema import SCHEMAS
from scopelake.store.writer import write_contexts, write_firings

RATE = 0.05
N_REPEATS, N_FEATURES, N_A, N_B = 40, 300, 60, 120
MOST_FAMILIES = 6
"""Of 40 families without a difference 5 % may have a discovery: more than 6 would be a chance of
less than 1 in 100."""


def bursty_counts(rng, tokens, rate=1.0):
    """Firings of every feature in every document: few documents have a feature, often."""
    density = rng.beta(0.08, 2.5, (N_FEATURES, len(tokens))) * rate
    return rng.binomial(tokens, np.minimum(density, 1.0))


def by_documents(counts, tokens, is_a):
    feature, document = np.nonzero(counts)
    rate = counts[feature, document] / tokens[document]
    n_a = int(is_a.sum())
    found = rank_sum(feature, rate, is_a[document], len(counts), n_a, len(tokens) - n_a)
    return discovery_rates(found.p)


def by_tokens(counts, tokens, is_a):
    """Pearson's chi-squared test of the table of tokens, which takes them to be independent."""
    n = np.array([tokens[is_a].sum(), tokens[~is_a].sum()])
    fired = np.stack([counts[:, is_a].sum(axis=1), counts[:, ~is_a].sum(axis=1)], axis=1)
    share = fired.sum(axis=1, keepdims=True) / n.sum()
    spread = np.sqrt(share[:, 0] * (1 - share[:, 0]) * (1 / n).sum())
    z = (fired / n) @ [1, -1] / np.where(spread > 0, spread, 1)
    return discovery_rates(np.array([erfc(abs(x) / sqrt(2)) for x in z]))


@pytest.mark.parametrize("n_a", [N_A, 8])
def test_shuffled_labels_give_no_more_discoveries_than_stated(n_a):
    families = {by_documents: 0, by_tokens: 0}
    for seed in range(N_REPEATS):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(30, 300, N_A + N_B)
        counts = bursty_counts(rng, tokens)
        is_a = rng.permutation(len(tokens)) < n_a
        for test in families:
            families[test] += np.nanmin(test(counts, tokens, is_a)) <= RATE
    assert families[by_documents] <= MOST_FAMILIES
    assert families[by_tokens] == N_REPEATS


def test_planted_differences_are_found_and_few_others():
    """Of the planted features documents of a have a firing on 15 tokens of 100 more often."""
    planted = np.arange(0, N_FEATURES, 10)
    false, missed, naive = [], 0, []
    for seed in range(N_REPEATS):
        rng = np.random.default_rng(1000 + seed)
        tokens = rng.integers(30, 300, N_A + N_B)
        is_a = rng.permutation(len(tokens)) < N_A
        counts = bursty_counts(rng, tokens)
        extra = rng.binomial(tokens, 0.15 * (rng.random((len(planted), len(tokens))) < 0.7) * is_a)
        counts[planted] = np.minimum(counts[planted] + extra, tokens)
        for q, into in ((by_documents(counts, tokens, is_a), false),
                        (by_tokens(counts, tokens, is_a), naive)):  # fmt: skip
            found = np.flatnonzero(q <= RATE)
            into.append(1 - np.isin(found, planted).mean())
            missed += len(set(planted) - set(found)) if into is false else 0
    assert missed == 0
    assert np.mean(false) <= RATE
    assert np.mean(naive) > 0.5


def bursts(rng, n_features, n_documents, n_tokens):
    """Whether features fire, token by token: a chain that stays on for five tokens or so."""
    on = rng.random((n_features, n_documents)) < 0.05
    steps = np.empty((n_tokens, n_features, n_documents), bool)
    for t in range(n_tokens):
        draw = rng.random(on.shape)
        on = np.where(on, draw < 0.8, draw < 0.2 * 0.05 / 0.95)
        steps[t] = on
    return np.moveaxis(steps, 0, -1)


@pytest.mark.parametrize("is_paired", [True, False])
def test_sets_of_unlike_length_do_not_look_different(is_paired):
    """Rates are equal; documents of a have 8 tokens, of b 150."""
    short, long, n, n_features = 8, 150, 120, 60
    families = {"windows": 0, "whole": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        fired = bursts(rng, n_features, n, short + long)
        tokens = np.tile([short, long], (n, 1))
        if not is_paired:
            tokens[: n // 2, 1] = tokens[n // 2 :, 0] = 0
        windows = place_windows(tokens, None, seed)
        lengths = {"windows": windows.length, "whole": tokens}
        for name, length in lengths.items():
            start = windows.start if name == "windows" else 0 * tokens
            rates = np.zeros((2, n_features, n))
            for side, first in enumerate((0, short)):
                for d in np.flatnonzero(length[:, side]):
                    at = (start[d, side] + np.arange(length[d, side])) % tokens[d, side]
                    rates[side, :, d] = fired[:, d, first + at].mean(axis=1)
            families[name] += np.nanmin(discovery_rates(p_values(rates, windows.test))) <= RATE
    assert families["windows"] <= 4
    assert families["whole"] == 20


def p_values(rates, test):
    difference = rates[0] - rates[1]
    feature, document = np.nonzero(difference)
    values, n = difference[feature, document], difference.shape[1]
    if test == "signed-rank":
        return signed_rank(feature, values, len(difference), n).p
    return rank_sum(feature, np.abs(values), values > 0, len(difference), n // 2, n // 2).p


def test_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(9)
    n, n_documents, density = 1500, 80, rng.beta(0.5, 4, (1500, 80))
    density[:, :40] = np.minimum(2 * density[:, :40], 1)
    tokens = rng.integers(20, 200, n_documents)
    counts = rng.binomial(tokens, density)
    is_a = np.arange(n_documents) < 40
    feature, document = np.nonzero(counts)
    fired = counts[feature, document].astype(float)
    documents = Documents(np.where(is_a, tokens, 0), np.where(is_a, 0, tokens))
    found = rate_difference(
        feature, document, fired * is_a[document], fired * ~is_a[document], n, documents
    )
    many = rng.beta(0.5, 4, (2, 1_000_000))
    rate_a, rate_b = np.minimum(2 * many[0], 1).mean(), many[1].mean()
    log_odds = np.log(rate_a / (1 - rate_a) / rate_b * (1 - rate_b))
    for name, truth in (("difference", rate_a - rate_b), ("log_odds", log_odds)):
        low, high = getattr(found, f"{name}_low"), getattr(found, f"{name}_high")
        assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.97
    ranked = rank_sum(feature, fired / tokens[document], is_a[document], n, 40, 40)
    size = rng.choice(tokens, 400_000)
    draws = [rng.binomial(size, d[:400_000]) / size for d in (np.minimum(2 * many[0], 1), many[1])]
    auc = np.mean((draws[0] > draws[1]) + (draws[0] == draws[1]) / 2)
    assert 0.92 <= np.mean((ranked.auc_low <= auc) & (auc <= ranked.auc_high)) <= 0.97


PLANTED = (3, 7, 11)
N_DOCUMENTS, LENGTH, WIDTH = 60, 40, 24


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Documents of 40 tokens; the planted features fire in odd ones four times as often."""
    store = LakeStore.create(tmp_path_factory.mktemp("planted") / "lake")
    rng = np.random.default_rng(2)
    density = rng.beta(0.2, 2, (WIDTH, N_DOCUMENTS))
    density[list(PLANTED)] = 0.1
    density[list(PLANTED), 1::2] = 0.4
    fired = rng.random((LENGTH, WIDTH, N_DOCUMENTS)) < density
    position, feature, context = np.nonzero(fired)
    firings = Firings(
        context.astype(np.int64), (position + 1).astype(np.int32), feature.astype(np.int32),
        rng.uniform(1, 2, len(context)).astype(np.float32), np.zeros(len(context), np.int8),
    )  # fmt: skip
    texts = pa.Table.from_pylist(
        [
            {"corpus": "c", "context": i, "document": f"d{i}", "document_index": i, "part": 0,
             "text": "a" * LENGTH, "n_tokens": LENGTH + 1, "token_ids": [2] * (LENGTH + 1),
             "token_starts": [0, *range(LENGTH)], "roles": [0] * (LENGTH + 1),
             "turns": [0] * (LENGTH + 1), "kinds": [KIND_BOS, *[0] * LENGTH], "metadata": "{}"}
            for i in range(N_DOCUMENTS)
        ],
        SCHEMAS["contexts"],
    )  # fmt: skip
    sae = {"sae": "s", "site": "resid_post", "layer": 0, "layers": [0], "width": WIDTH,
           "features_per_layer": WIDTH}  # fmt: skip
    corpus = {"corpus": "c", "tokenizer": "x", "tokenizer_digest": "y", "n_contexts": N_DOCUMENTS,
              "shard_contexts": N_DOCUMENTS, "context_ends": [N_DOCUMENTS]}  # fmt: skip
    with Writer(store) as writer:
        receipts = write_contexts(store.root, texts, "c", "r")
        receipts += write_firings(
            store.root, firings, sae="s", corpus="c", shard=0, run="r", bits=23
        )
        rows = {"saes": pa.Table.from_pylist([sae], SCHEMAS["saes"]),
                "corpora": pa.Table.from_pylist([corpus], SCHEMAS["corpora"])}  # fmt: skip
        writer.commit(receipts, transaction="all", reason="all", rows=rows)
    return store


def test_a_lake_gives_what_was_planted_and_under_shuffled_labels_nothing(lake):
    connection = connect(lake, lake.snapshot())
    saes = list_saes(lake, lake.snapshot())

    def found(*wheres):
        sets = map(TokenSet, wheres)
        return compare(connection, saes, *sets, Choice(), lambda *_: None).top(None, q=RATE)

    odd = "document_index % 2 = 1"
    table = found(odd, f"NOT ({odd})")
    assert sorted(table["feature"].to_pylist()) == list(PLANTED)
    assert min(table["auc"].to_pylist()) > 0.9
    n_families = 0
    for seed in range(20):
        # Within odd and even documents, so that what was planted does not tell.
        chosen = np.random.default_rng(seed).permutation(N_DOCUMENTS // 2)[: N_DOCUMENTS // 4]
        listed = f"document_index // 2 IN ({', '.join(map(str, chosen))})"
        n_families += found(listed, f"NOT ({listed})").num_rows > 0
    assert n_families <= 4
    connection.close()
