"""The page of an inspection: one file that fetches nothing, and holds what was found."""

import json
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from scopelake.errors import InvalidArgumentError
from scopelake.query.inspection import Inspection
from scopelake.query.inspection_page import page, page_data

SAES = ("a/resid_post_all/layer_0", "b/resid_post_all/layer_0", "a/attn_out/layer_1")
PIECES = ("<bos>", "</script><script>alert(1)</script>", " http://x.y/z?a=1&b='\"", "\x00\u2028🦜",
          "<!--", "\\u003c //")  # fmt: skip


def build(*, by="activation", against="code"):
    """Tokens of awkward text, and firings of three SAEs with nulls wherever they may be."""
    rows = [
        {"sae": sae, "layer": i // 2, "site": "resid_post", "position": p, "token": piece,
         "feature": 10 * i + p, "activation": 1.5 + p, "score": None if p == 3 else 0.5 * p,
         "percentile": None if p in (0, 4) else 12.5 * p,
         "percentile_error": None if p in (0, 4) else float(p % 2),
         "label": piece if i == 1 else None, "top_tokens": None if i == 2 else [piece, "é"]}
        for p, piece in enumerate(PIECES) for i, sae in enumerate(SAES)
    ]  # fmt: skip
    errors = [
        {"sae": sae, "layer": i // 2, "site": "resid_post", "position": p,
         "unexplained": None if p == 2 else 0.1 * p, "error": 1.0, "norm": 2.0}
        for i, sae in enumerate(SAES) for p in range(1, len(PIECES))
    ]  # fmt: skip
    tokens = [
        {"position": p, "token": piece, "role": "none", "turn": -1,
         "kind": "content" if p else "bos"}
        for p, piece in enumerate(PIECES)
    ]  # fmt: skip
    return Inspection(None, "m", *map(pa.Table.from_pylist, (tokens, rows, errors)), by, 10,
                      against, "a note <i>")  # fmt: skip


class Reader(HTMLParser):
    """What a page refers to, and the text of its scripts."""

    def __init__(self):
        super().__init__()
        self.attributes, self.tags, self.scripts, self.inside = [], [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "script":
            self.inside = dict(attrs).get("type", "code")

    def handle_endtag(self, tag):
        self.inside = None if tag == "script" else self.inside

    def handle_data(self, data):
        if self.inside is not None:
            self.scripts.append((self.inside, data))


@pytest.mark.parametrize("by", ["activation", "surprise"])
def test_a_page_is_whole_and_holds_what_was_found(by):
    found = build(by=by)
    text = page(found)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.tags.count("script") == 2
    assert not {"src", "href", "srcset", "action", "data"} & set(reader.attributes)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(reader.tags)
    assert "http:" + "//" not in text
    assert "https:" + "//" not in text
    assert "url(" not in text
    assert "@import" not in text
    (data,) = (content for kind, content in reader.scripts if kind == "application/json")
    shown = json.loads(data)
    assert shown == page_data(found)
    assert shown["tokens"] == found.tokens.to_pylist()
    fired = shown["firings"]
    for i, row in enumerate(found.firings.to_pylist()):
        place, about = shown["places"][fired["place"][i]], shown["about"][fired["about"][i]]
        assert (place["sae"], place["layer"]) == (row["sae"], row["layer"])
        assert about == {name: row[name] for name in ("feature", "label", "top_tokens")}
        for name in ("position", "activation", "score", "percentile"):
            assert fired[name][i] == row[name]
        assert fired["error"][i] == row["percentile_error"]
    missed = shown["errors"]
    for i, row in enumerate(found.errors.to_pylist()):
        assert missed["position"][i] == row["position"]
        assert missed["unexplained"][i] == row["unexplained"]
        assert shown["places"][missed["place"][i]]["sae"] == row["sae"]
    (code,) = (content for kind, content in reader.scripts if kind == "code")
    assert "innerHTML" not in code  # texts of prompts are set as text
    assert code.isascii()


def test_names_that_end_alike_are_shown_in_full():
    places = page_data(build())["places"]
    assert [p["short"] for p in places] == [SAES[0], SAES[1], "attn_out/layer_1"]
    assert [p["mean"] for p in places] == pytest.approx([(0.1 + 0.3 + 0.4 + 0.5) / 4] * 3)


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    found = build()
    there = tmp_path / "page.html"
    there.write_text("old")
    assert found.to_html(there) == there
    assert there.read_text(encoding="utf-8") == page(found)
    for path in (tmp_path, tmp_path / "none" / "a.html", there / "a.html"):
        with pytest.raises(InvalidArgumentError, match="cannot be written"):
            found.to_html(path)
    assert list(tmp_path.iterdir()) == [there]


def test_text_and_table_mark_what_is_new_bounded_and_unknown():
    found = build()
    text = found.to_text()
    for part in ("p12±1", "p25.0", "new", "a note <i>", "30.0 %", "not kept"):
        assert part in text
    assert "\x00" not in text
    assert "new" not in build(against=None).to_text()
    table = found._repr_html_()
    assert "<script" not in table
    assert "a note &lt;i&gt;" in table
