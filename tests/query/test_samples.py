"""sample_contexts against bands that are made by hand."""

from __future__ import annotations

import pytest

from scopelake.errors import InvalidArgumentError, QueryError
from scopelake.query.rank_contexts import Ranking
from scopelake.query.samples import SampledContexts, sample_contexts


def ask(built, how="quantile", *, feature=0, k=20, n_bands=5, seed=0, **asked) -> SampledContexts:
    ranking = Ranking(built.sae(), feature, k, **asked)
    return sample_contexts(built.connection, ranking, how, n_bands=n_bands, seed=seed)


def peaks_of(built, feature, corpus=None) -> list[tuple[float, str, int]]:
    """Activation of each context's strongest firing, ascending."""
    found: dict[tuple[str, int], float] = {}
    for r in built.rows:
        mine = r.sae == built.sae().name and r.feature == feature and r.kind != "bos"
        if mine and corpus in (None, r.corpus):
            key = (r.corpus, r.context)
            found[key] = max(found.get(key, 0.0), r.activation)
    # Of ties the query has the first contexts first, so from below the last.
    descending = sorted((-a, *key) for key, a in found.items())
    return [(-a, *key) for a, *key in reversed(descending)]


def parts(rows: list, n: int) -> list[list]:
    """As equal as they can be, the longer ones first."""
    short, longer = divmod(len(rows), n)
    found, at = [], 0
    for i in range(n):
        size = short + (i < longer)
        found.append(rows[at : at + size])
        at += size
    return found


@pytest.mark.parametrize("k", [5, 7, 20, 5000])
@pytest.mark.parametrize("n_bands", [1, 3, 5])
@pytest.mark.parametrize(("feature", "corpus"), [(0, None), (3, "chats"), (7, None)])
def test_quantile_bands_have_equally_many_contexts(built, feature, corpus, k, n_bands):
    found = ask(built, k=k, n_bands=n_bands, feature=feature, corpus=corpus).table.to_pylist()
    bands = parts(peaks_of(built, feature, corpus), n_bands)
    shares = [len(part) for part in parts(list(range(k)), n_bands)]
    assert [sum(r["band"] == b for r in found) for b in range(n_bands)] == [
        min(share, len(band)) for share, band in zip(shares, bands, strict=True)
    ]
    for row in found:
        band = bands[row["band"]]
        assert (row["activation"], row["corpus"], row["context"]) in band
        assert (row["low"], row["high"], row["n_contexts"]) == (band[0][0], band[-1][0], len(band))
    assert len({(r["corpus"], r["context"]) for r in found}) == len(found)


def test_uniform_bands_have_equal_width(built):
    found = ask(built, "uniform", k=50, n_bands=4, corpus="plain").table.to_pylist()
    peaks = peaks_of(built, 0, "plain")
    width = (peaks[-1][0] - peaks[0][0]) / 4
    assert {r["band"] for r in found} == {0, 3}  # nothing lies between 2 and 70,000
    for row in found:
        assert row["band"] == min(3, int((row["activation"] - peaks[0][0]) / width))
        of_band = [p for p in peaks if (p[0] > 35_000) == (row["band"] == 3)]
        assert row["n_contexts"] == len(of_band)


def test_one_activation_is_one_band(built):
    found = ask(built, "uniform", k=8, n_bands=4, where="activation = 2.0")
    assert set(found.table["band"].to_pylist()) == {3}
    assert found.table.num_rows == 2


def test_seeds_choose_and_choose_again(built):
    first, again, other = (ask(built, seed=s).table for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("how", ["quantile", "uniform"])
def test_a_silent_feature_has_none(built, how):
    silent, loud = ask(built, how, feature=11), ask(built, how)
    assert silent.table.num_rows == 0
    assert silent.table.schema == loud.table.schema
    assert "never fires" in str(silent)
    assert silent._repr_html_().startswith("<b>feature 11</b>")


@pytest.mark.parametrize(
    ("how", "asked", "says"),
    [
        ("loudness", {}, "by 'loudness' was asked for; there are quantile, uniform"),
        ("quantile", {"n_bands": 0}, "n_bands=0"),
        ("quantile", {"k": 3, "n_bands": 4}, "k=3 contexts of n_bands=4"),
    ],
)
def test_what_cannot_be_sampled_is_refused(built, how, asked, says):
    with pytest.raises(InvalidArgumentError, match=says):
        ask(built, how, **asked)
    with pytest.raises(QueryError, match="columns of where"):
        ask(built, where="loudness > 1")


def test_it_shows_bands_the_highest_first(built):
    text = ask(built, k=10, n_bands=2).to_text()
    lines = text.split("\n")
    assert lines[0].endswith("from bands of equally many contexts")
    heads = [line for line in lines if line.startswith("activation ")]
    assert len(heads) == 2
    assert "70000: 5 of" in heads[0].replace("7e+04", "70000")
    assert len(lines) == 1 + 2 * (1 + 2 * 5)
    assert ask(built, k=10, n_bands=2)._repr_html_().count("<table>") == 2
    assert len(ask(built).to_pandas()) == 20
