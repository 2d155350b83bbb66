"""features_at against the rows that were written."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scopelake.errors import (
    AmbiguousSaeError,
    ContextNotFoundError,
    CorpusNotFoundError,
    InvalidArgumentError,
    NotIngestedError,
    SaeNotFoundError,
)
from scopelake.names import FIRING_RANKINGS
from scopelake.query.firing import FeaturesAt, features_at
from scopelake.query.resolve import list_saes

FULL = "gs-2/resid_post/layer_2_width_12"


def ask(built, *args, **asked) -> FeaturesAt:
    saes = list_saes(built.store, built.snapshot)
    return features_at(built.connection, built.store, built.snapshot, saes, *args, **asked)


def oracle(built, context, position, corpus, sae, k) -> list[dict[str, Any]]:
    """The answer by sorting every firing there is."""
    rows = [
        r for r in built.rows
        if (r.corpus, r.context) == (corpus, context)
        and position in (None, r.position) and sae in (None, r.sae)
    ]  # fmt: skip
    rows.sort(key=lambda r: (r.position, -r.activation, r.sae, r.feature))
    seen: dict[tuple[str, int], int] = {}
    found = []
    for r in rows:
        rank = seen[r.sae, r.position] = seen.get((r.sae, r.position), 0) + 1
        if k is None or rank <= k:
            site, layer = r.sae.split("/")[1], int(r.sae.split("_")[-3])
            token = built.contexts[corpus, context].shown[r.position]
            found.append({
                "sae": r.sae, "layer": layer, "site": site, "position": r.position,
                "token": token, "feature": r.feature, "activation": r.activation,
                "score": r.activation,
            })  # fmt: skip
    return found


@pytest.mark.parametrize("context", [0, 7, 36])
@pytest.mark.parametrize("position", [None, 0, 1])
@pytest.mark.parametrize(("corpus", "sae", "k"), [("plain", None, None), ("chats", FULL, 2),
                                                  ("plain", None, 1)])  # fmt: skip
def test_it_agrees_with_brute_force(built, context, position, corpus, sae, k):
    found = ask(built, context, position, corpus=corpus, sae=sae, k=k)
    assert found.table.to_pylist() == oracle(built, context, position, corpus, sae, k)


def test_a_unique_ending_names_the_sae(built):
    found = ask(built, 3, corpus="plain", sae="resid_post/layer_2_width_12")
    assert set(found.table["sae"].to_pylist()) == {FULL}


@pytest.mark.parametrize(
    ("args", "asked", "error", "says"),
    [
        ((400,), {"corpus": "plain"}, ContextNotFoundError, "0 to 399"),
        ((-1,), {"corpus": "plain"}, ContextNotFoundError, "context -1"),
        ((0, 4000), {"corpus": "plain"}, ContextNotFoundError, "position 4000"),
        ((0,), {}, InvalidArgumentError, "chats, plain"),
        ((0,), {"corpus": "other"}, CorpusNotFoundError, "chats, plain"),
        ((0,), {"corpus": "plain", "sae": "nothing"}, SaeNotFoundError, FULL),
        ((0,), {"corpus": "plain", "sae": "width_12"}, AmbiguousSaeError, FULL),
        ((0,), {"corpus": "plain", "k": 0}, InvalidArgumentError, "k=0"),
    ],
)
def test_what_is_not_there_is_refused(built, args, asked, error, says):
    with pytest.raises(error, match=says):
        ask(built, *args, **asked)


def test_it_shows_itself(built):
    found = ask(built, 5, corpus="plain")
    row = found.table.to_pylist()[0]
    assert f"{row['feature']}" in str(found)
    assert "\x1b" not in found.to_text()
    assert "\x1b[1m" in found.to_text(color=True)
    html = "".join(ask(built, c, corpus="plain")._repr_html_() for c in range(30))
    assert "<code>&lt;b&gt;</code>" in html
    assert found.to_pandas().shape == (found.table.num_rows, 8)


SCORED = "gs-2/resid_post/layer_1_width_12"


def usual(built, sae, corpus, feature) -> list[float]:
    """All activations of a feature outside of BOS."""
    return [
        r.activation
        for r in built.rows
        if (r.sae, r.corpus, r.feature) == (sae, corpus, feature) and r.kind != "bos"
    ]


def score(built, row, by) -> float | None:
    """By plain counting; 1,000 is what the statistics were given as the number of tokens."""
    known = usual(built, row.sae, "plain", row.feature)
    if by == "activation":
        return row.activation
    if by == "surprise":
        octave = 2.0 ** math.floor(math.log2(row.activation))
        return math.log2(1000 / max(sum(a >= octave for a in known), 0.5))
    if not known:
        return None
    return row.activation / (max(known) if by == "max" else sum(known) / len(known))


@pytest.mark.parametrize("by", FIRING_RANKINGS)
@pytest.mark.parametrize("corpus", ["plain", "chats"])
@pytest.mark.parametrize("position", [None, 0, 1])
@pytest.mark.parametrize("k", [None, 1, 3])
def test_rankings_agree_with_brute_force(built, by, corpus, position, k):
    for context in (2, 9, 30):
        found = ask(built, context, position, corpus=corpus, sae=SCORED, k=k, by=by, usual="plain")
        rows = [
            r for r in built.rows
            if (r.sae, r.corpus, r.context) == (SCORED, corpus, context)
            and position in (None, r.position)
        ]  # fmt: skip
        expected = []
        for p in sorted({r.position for r in rows}):
            of_token = [(score(built, r, by), r) for r in rows if r.position == p]
            of_token.sort(key=lambda s: (-(s[0] or -1), -s[1].activation, s[1].feature))
            expected += of_token[:k]
        assert found.table["feature"].to_pylist() == [r.feature for _, r in expected]
        assert found.table["position"].to_pylist() == [r.position for _, r in expected]
        assert found.table["score"].to_pylist() == pytest.approx([s for s, _ in expected], rel=1e-6)


@pytest.mark.parametrize("by", FIRING_RANKINGS)
@pytest.mark.parametrize("k", [None, 2])
def test_features_of_a_whole_context_agree_with_brute_force(built, by, k):
    for context in range(0, 40, 3):
        found = ask(built, context, corpus="plain", sae=SCORED, k=k, by=by, whole=True)
        best: dict[int, list[tuple[float, float, int]]] = {}
        for r in built.rows:
            if (r.sae, r.corpus, r.context) == (SCORED, "plain", context) and r.kind != "bos":
                value = (-score(built, r, by), -r.activation, r.position)
                best.setdefault(r.feature, []).append(value)
        ranked = sorted((min(v)[0], min(v)[1], f, min(v)[2], len(v)) for f, v in best.items())[:k]
        assert found.table["feature"].to_pylist() == [f for _, _, f, _, _ in ranked]
        assert found.table["position"].to_pylist() == [p for _, _, _, p, _ in ranked]
        assert found.table["n_firings"].to_pylist() == [n for *_, n in ranked]
        assert found.table["score"].to_pylist() == pytest.approx([-s for s, *_ in ranked], rel=1e-6)


def test_a_whole_context_is_ranked_across_layers(built):
    found = ask(built, 5, corpus="plain", whole=True)
    scores = found.table["score"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert len(set(found.table["layer"].to_pylist())) > 1


def test_rankings_that_cannot_be_are_refused(built):
    with pytest.raises(InvalidArgumentError, match="by 'loudness' was asked for; there are"):
        ask(built, 5, corpus="plain", by="loudness")
    with pytest.raises(NotIngestedError, match="its statistics are not there"):
        ask(built, 5, corpus="plain", by="mean")
    with pytest.raises(CorpusNotFoundError, match="nowhere"):
        ask(built, 5, corpus="plain", sae=SCORED, by="mean", usual="nowhere")
    with pytest.raises(InvalidArgumentError, match="whole context were asked for at position 1"):
        ask(built, 5, 1, corpus="plain", whole=True)


def test_it_shows_scores(built):
    found = ask(built, 5, corpus="plain", sae=SCORED, by="surprise", whole=True)
    row = found.table.to_pylist()[0]
    assert "by surprise, bits" in found.to_text()
    assert f"{row['n_firings']} times, at {row['position']} " in found.to_text()
    assert f"<td>{row['score']:.3g}</td>" in found._repr_html_()
    bos = ask(built, 5, 0, corpus="chats", sae=SCORED, by="mean", usual="plain")
    assert bos.to_text().startswith("context 5 of chats, by activation over the mean")
