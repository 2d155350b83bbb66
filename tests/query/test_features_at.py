"""features_at against the rows that were written."""

from __future__ import annotations

from typing import Any

import pytest

from scopelake.errors import (
    AmbiguousSaeError,
    ContextNotFoundError,
    CorpusNotFoundError,
    InvalidArgumentError,
    SaeNotFoundError,
)
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
    assert found.to_pandas().shape == (found.table.num_rows, 7)
