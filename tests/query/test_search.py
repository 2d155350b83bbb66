"""Search by text and by regular expression, against Python's own and a walk over the tokens."""

from __future__ import annotations

import json
import re

import duckdb
import pytest

from scopelake.cli import main
from scopelake.errors import CorpusNotFoundError, InvalidArgumentError, QueryError
from scopelake.lake import Lake
from scopelake.query import search as searching

PLAIN = ["cat", "日本", "🙂", "é", "\n", "'q\"", "<b>", "catthe", "日", "nothing", "\\"]
EXPRESSIONS = ["c.t", "[a-z]+", "(the|cat)+", "t$", "^", "x*", r"\bcat\b", "日.?", "(?s).+"]


@pytest.fixture
def lake(built):
    return Lake(built.store, built.snapshot, pinned=False)


def tokens_of(context, start, stop):
    """Walk over the tokens: those with one of the characters, and the empty ones just before."""
    at, found, empty = 0, [], []
    for position, piece in enumerate(context.pieces):
        if piece == "":
            if context.kinds[position] == 2:
                empty = []
            else:
                empty.append(position)
        else:
            if at < stop and at + len(piece) > start:
                found += [*empty, position] if not found or empty else [position]
            empty = []
        at += len(piece)
    return found[0], found[-1] + 1


def expected(built, pattern, flags=0, corpus=None, meets=lambda context, position: True):
    rows = []
    for (name, number), context in sorted(built.contexts.items()):
        if corpus not in (None, name):
            continue
        text = "".join(context.pieces)
        for found in re.finditer(pattern, text, flags):
            if found.end() == found.start():
                continue
            start, stop = tokens_of(context, found.start(), found.end())
            if meets(context, start):
                rows.append((name, number, start, stop, found.start(), found.end(), found[0]))
    return rows


def rows_of(found):
    names = ("corpus", "context", "start", "stop", "char_start", "char_end", "match")
    return [tuple(row[n] for n in names) for row in found.table.to_pylist()]


@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize("pattern", [*PLAIN, "CAT", "É"])
def test_a_text_is_found_wherever_it_is(built, lake, pattern, ignore_case):
    found = lake.search(pattern, k=None, ignore_case=ignore_case)
    rows = expected(built, re.escape(pattern), re.IGNORECASE if ignore_case else 0)
    assert rows_of(found) == rows
    assert found.n_matches == len(rows)
    assert found.n_contexts == len({row[:2] for row in rows})


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_an_expression_is_found_wherever_it_matches(built, lake, pattern):
    # RE2's $ is the end of the text, as Python's \Z is, and its classes are of ASCII.
    rows = expected(built, pattern.replace("$", r"\Z"), re.ASCII)
    found = lake.search(pattern, regex=True, k=None)
    assert rows_of(found) == rows
    assert (found.n_matches, found.n_contexts) == (len(rows), len({row[:2] for row in rows}))


@pytest.mark.parametrize("regex", [False, True])
def test_the_first_are_shown_and_all_are_counted(built, lake, regex):
    rows = expected(built, "cat")
    found = lake.search("cat", regex=regex, k=7)
    assert rows_of(found) == rows[:7]
    assert found.n_matches == len(rows) > 7
    assert f"{len(rows)} times in {found.n_contexts} contexts; the first 7" in found.to_text()


@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ("role = 'user'", lambda c, p: c.roles[p] == 1),
        ("corpus = 'chats' AND turn > 0", lambda c, p: c.corpus == "chats" and c.turns[p] > 0),
        ("json_extract_string(metadata, 'lang') = 'l1'", lambda c, p: c.context % 3 == 1),
        ("position < 3 AND n_tokens > 4", lambda c, p: p < 3 and len(c.pieces) > 4),
        ("token LIKE '% cat' OR kind = 'content'", lambda c, p: c.pieces[p].endswith(" cat")
         or (c.kinds[p] == 0)),
        ("false", lambda c, p: False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("regex", [False, True])
def test_where_is_of_the_first_token(built, lake, where, meets, regex):
    rows = expected(built, "cat", meets=meets)
    found = lake.search("cat", regex=regex, where=where, k=None)
    assert rows_of(found) == rows
    assert found.n_matches == len(rows)
    assert rows_of(lake.search("cat", where=where, k=2)) == rows[:2]


def test_the_parts_in_which_it_is_searched_do_not_matter(built, lake, monkeypatch):
    whole, calls = rows_of(lake.search("the", k=None)), []
    monkeypatch.setattr(searching, "_AT_ONCE", 100)
    monkeypatch.setattr(searching, "_TEXTS", 3)
    found = lake.search("the", k=None, progress=lambda done, of: calls.append((done, of)))
    assert rows_of(found) == whole
    assert calls[-1] == (437, 437)
    assert len(calls) > 20
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    some = lake.search("the", k=5, where="corpus = 'plain'")
    assert rows_of(some) == [row for row in whole if row[0] == "plain"][:5]


def test_only_one_corpus(built, lake):
    assert rows_of(lake.search("cat", corpus="chats", k=None)) == expected(
        built, "cat", corpus="chats"
    )


def test_text_around_a_match_is_whole_tokens(built, lake):
    for row in lake.search("日本", window=2, k=None).table.to_pylist():
        context = built.contexts[row["corpus"], row["context"]]
        shown = "".join(context.pieces[max(row["start"] - 2, 0) : row["stop"] + 2])
        assert row["before"] + row["match"] + row["after"] == shown
        assert row["document"] == context.document


def test_marks_that_a_text_has_are_not_used():
    first, last = searching._MARKS[0]
    assert searching._marks([f"a{last}", "b"]) == searching._MARKS[1]
    with pytest.raises(QueryError, match="one pair of which must be free"):
        searching._marks(["".join(a for a, _ in searching._MARKS)])
    assert searching._marks([]) == (first, last)


def test_what_cannot_be_searched_for_is_refused(lake):
    with pytest.raises(InvalidArgumentError, match="empty text"):
        lake.search("")
    with pytest.raises(InvalidArgumentError, match=r"expression '\('.* is none.*missing \)"):
        lake.search("(", regex=True)
    with pytest.raises(InvalidArgumentError, match=r"k=0"):
        lake.search("a", k=0)
    with pytest.raises(InvalidArgumentError, match=r"window=-1"):
        lake.search("a", window=-1)
    with pytest.raises(CorpusNotFoundError, match="'no'"):
        lake.search("a", corpus="no")
    with pytest.raises(QueryError, match="columns of where are corpus, context, position, token"):
        lake.search("cat", where="activation > 1")
    with pytest.raises(QueryError):
        lake.search("cat", where="1) OR (1=1")
    with pytest.raises(InvalidArgumentError, match="where 5"):
        lake.search("cat", where=5)


def test_the_verb(built, lake, capsys):
    path = str(built.store.root.path)
    assert main(["search", path, "SAT", "--ignore-case", "--corpus", "chats", "-k", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("'SAT': ")
    assert "[[sat]]" in said
    assert main(["search", path, "c.t", "--regex", "--json", "-k", "3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == lake.search("c.t", regex=True, k=3).table.to_pylist()
    assert main(["search", path, "[", "--regex"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_text_cannot_command_a_terminal_or_a_page(lake):
    assert "\x1b[31m" not in lake.search("cat", k=None).to_text()
    page = lake.search("<b>", k=3)._repr_html_()
    assert "<mark>&lt;b&gt;</mark>" in page
    assert "0 times in 0 contexts" in lake.search("nothing there").to_text()


def test_an_expression_without_characters_breaks_nothing(built, lake):
    # DuckDB's regexp_extract_all gives up its database here.
    assert lake.search(r"\B", regex=True).n_matches == 0
    assert rows_of(lake.search(r"\B日|é\B", regex=True, k=None)) == expected(
        built, r"(?a:\B日|é\B)"
    )
    with pytest.raises(QueryError) as failed:
        lake.sql(r"SELECT regexp_extract_all(text, '\B') FROM contexts")
    assert "Stack" not in str(failed.value)
    assert rows_of(lake.search("cat", k=None)) == expected(built, "cat")
    assert lake.sql("SELECT count(*) AS n FROM contexts")["n"][0].as_py() == len(built.contexts)


def test_texts_with_marks_of_their_own_are_counted_too(built, lake, monkeypatch):
    # As if letters of the texts were the marks of the first choice.
    monkeypatch.setattr(searching, "_MARKS", (("a", "t"), *searching._MARKS))
    for pattern in ("cat|sat", "x*", "(?s).", "[at]+"):
        rows = expected(built, pattern)
        found = lake.search(pattern, regex=True, k=None)
        assert (found.n_matches, rows_of(found)) == (len(rows), rows)


def test_matches_are_counted_where_there_are_no_marks():
    query = f"SELECT {searching._count_of_marked()} FROM (SELECT $2 AS text)"
    for pattern, n in {"a": 2, "x*": 0, "a|": 2, ".": 4, r"\B": 0, "^|$": 0, "ab|b": 1}.items():
        assert duckdb.execute(query, [pattern, "abéa"]).fetchall() == [(n,)], pattern
