"""Corpus files: every kind is read whole, every malformed one refused with file and line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.errors import CorpusSourceError
from scopelake.ingest.sources import CorpusSource


def read(source, *, chat=False, root=None):
    return list(CorpusSource.find(source, chat=chat, root=root).documents())


def test_text_files_of_a_folder_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.py").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "ignored.bin").write_bytes(b"\x00")
    found = read(tmp_path, root=tmp_path)
    assert [(d.id, d.text) for d in found] == [("a.py", "first"), ("b.txt", "second")]


def test_jsonl_keeps_ids_and_metadata(tmp_path):
    path = tmp_path / "c.jsonl"
    lines = [{"id": 7, "text": "x", "lang": "en", "metadata": {"n": 1}}, {"text": "y\u2028z"}]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    first, second = read(path)
    assert (first.id, first.text, first.metadata) == ("7", "x", {"lang": "en", "n": 1})
    assert (second.id, second.text) == ("c:2", "y\u2028z")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_last_line_without_newline_is_a_record_too(tmp_path, end):
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "x"}\n{"text": "y"}' + end.encode())
    assert [d.text for d in read(tmp_path / "c.jsonl")] == ["x", "y"]


def test_parquet_chats(tmp_path):
    path = tmp_path / "chats.parquet"
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    pq.write_table(pa.table({"messages": messages, "label": ["good"]}), path)
    (document,) = read(path, chat=True)
    assert document.messages == tuple(messages[0])
    assert document.metadata == {"label": "good"}


@pytest.mark.parametrize(
    ("name", "data", "chat", "message"),
    [
        ("a.txt", b"", False, r"a\.txt .* is empty"),
        ("a.txt", b" \n", False, r"a\.txt .* is empty"),
        ("a.txt", b"ab\xff", False, r"a\.txt .* byte 2 is not valid UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', False, r"a\.jsonl:2 .* not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', False, r"a\.jsonl:2 .* not valid UTF-8"),
        ("a.jsonl", b'["x"]', False, r"a\.jsonl:1 .* 'text'; it has list"),
        ("a.jsonl", b'{"messages": []}', False, r"a\.jsonl:1 .* pass chat=True"),
        ("a.jsonl", b'{"messages": []}', True, r"a\.jsonl:1 has no messages"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', True, r"a\.jsonl:1 has a message without"),
        ("a.jsonl", b'{"text": 3}', False, r"a\.jsonl:1 has a 'text' that is no string"),
        ("a.parquet", b"PAR1", False, r"a\.parquet .* not a Parquet file"),
        ("a.jsonl", b'{"text": null}', False, r"a\.jsonl:1 .* its 'text'; it is null"),
        ("a.jsonl", b'{"text": "a\\ud800"}', False, r"a\.jsonl:1 .* its text has half"),
        ("a.jsonl", b'{"text": "a", "id": "\\udfff"}', False, r"a\.jsonl:1 .* its id has half"),
        (
            "a.jsonl",
            b'{"text": "a", "n": [{"\\ud800": 1}]}',
            False,
            r"jsonl:1 .* metadata has half",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "\\udc00"}]}',
            True,
            r"a\.jsonl:1 .* its messages has half",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "human", "content": "x"}]}',
            True,
            r"a\.jsonl:1 has a message of role 'human'; roles are assistant, user",
        ),
        ("a.pdf", b"%PDF", False, r"a\.pdf .* \.pdf is no suffix of text or records; give \.txt"),
        ("a.txt", b"hello", True, r"a\.txt was given as a chat corpus"),
    ],
)
def test_malformed_files_are_refused(tmp_path, name, data, chat, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusSourceError, match=message):
        read(path, chat=chat)


def test_a_null_row_and_invalid_text_of_parquet_are_named(tmp_path):
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusSourceError, match=r"a\.parquet row 1 .* it is null"):
        read(tmp_path / "a.parquet")
    broken = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "b.parquet")
    with pytest.raises(CorpusSourceError, match=r"b\.parquet .* rows 0 to 0 .* not valid UTF-8"):
        read(tmp_path / "b.parquet")


def test_text_of_other_suffixes_is_read_if_it_is_named(tmp_path):
    for name in ("LICENSE", "main.rs"):
        (tmp_path / name).write_text("x")
        assert [d.id for d in read(tmp_path / name)] == [name]
    with pytest.raises(CorpusSourceError, match="the folder holds no"):
        read(tmp_path)


def test_missing_and_empty_paths_are_refused(tmp_path):
    with pytest.raises(CorpusSourceError, match="no such file"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(CorpusSourceError, match="the folder holds no"):
        read(tmp_path)
    with pytest.raises(CorpusSourceError, match="no files"):
        read([])
