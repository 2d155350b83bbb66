"""Corpora from a bucket: by key, prefix and pattern, an object at a time."""

import gzip
import json
from pathlib import Path

import pytest

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import CorpusSourceError, InvalidArgumentError, ObjectStoreError
from scopelake.ingest.sources import CorpusSource

BUCKET = "lakes"


@pytest.fixture
def texts(server, url):
    """Where some objects are: (URL, prefix of their keys)."""
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    for name, data in {
        "b.jsonl": b'{"text": "b1"}\n{"text": "b2"}\n',
        "a/a.jsonl.gz": gzip.compress(b'{"text": "a1"}\n'),
        "a/deep/c.txt": b"c",
        "a/no.bin": b"\0",
        "a/": b"",
    }.items():
        server.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)
    return url


def read(source, **options):
    return [d.text for d in CorpusSource.find(source, **options).documents()]


def test_objects_are_found_as_files_are(texts):
    assert read(f"{texts}/b.jsonl") == ["b1", "b2"]
    assert read(texts) == read(f"{texts}/") == ["a1", "c", "b1", "b2"]
    assert read([f"{texts}/b.jsonl", f"{texts}/a/deep"]) == ["b1", "b2", "c"]
    assert read(f"{texts}/**/*.jsonl*") == ["a1", "b1", "b2"]
    assert read(f"{texts}/*.jsonl") == ["b1", "b2"]
    (document,) = CorpusSource.find(f"{texts}/a/*.gz").documents()
    assert document.id == "a:1"
    assert document.origin == f"{texts}/a/a.jsonl.gz:1"


def test_what_is_not_there_is_refused(server, texts):
    with pytest.raises(CorpusSourceError, match="the bucket has no .* object there"):
        read(f"{texts}/b.json")
    with pytest.raises(CorpusSourceError, match=r"no\.bin .* \.bin is no suffix"):
        read(f"{texts}/a/no.bin")
    with pytest.raises(InvalidArgumentError, match="names no object of a bucket"):
        read(f"s3://{BUCKET}")
    with pytest.raises(InvalidArgumentError, match="a Path loses a slash, so give it as text"):
        read(Path(f"s3://{BUCKET}/x"))
    server.fail(methods=["GET"], deny=True)
    with pytest.raises(ObjectStoreError):
        read(texts)


def test_a_key_cannot_name_a_file_elsewhere(server, url):
    key = f"{url.removeprefix(f's3://{BUCKET}/')}/x/../../../evil.txt"
    server.client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    with pytest.raises((CorpusSourceError, ObjectStoreError)):
        read(url)


def test_the_command_line_keeps_both_slashes(texts, tmp_path, capsys):
    lake = str(tmp_path / "lake")
    scopelake.create(lake)
    told = ["--tokenizer", tiny.MODEL_NAME, "--context-length", "16"]
    assert main(["add-corpus", lake, "text", f"{texts}/b.jsonl", *told]) == 0
    assert "corpus text: 2 documents" in capsys.readouterr().out
    assert main(["add-corpus", lake, "no", f"{texts}/no.jsonl", *told]) == 2
    assert f"{texts}/no.jsonl was asked for" in capsys.readouterr().err
    assert main(["append-corpus", lake, "text", f"{texts}/a/*.gz"]) == 0
    assert "appended to corpus text: 1 document" in capsys.readouterr().out
    rows = scopelake.open(lake).sql("SELECT source, n_documents AS n FROM corpora").to_pylist()
    assert rows[0]["n"] == 3
    assert json.dumps(rows[0]["source"]).count("s3://") == 2


@pytest.mark.slow
def test_a_corpus_of_a_lake_in_a_bucket_takes_appends(server, url, tmp_path):
    for name, text in (("a", "def depth(lake):\n    return 1\n" * 9), ("b", "More rain.\n" * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    sae = tiny.coders_path() / "resid_post_all/layer_0_width_1024_l0_small"
    told = []
    for place in (f"{url}/lake", tmp_path / "lake"):
        lake = scopelake.create(place)
        lake.add_corpus("text", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=32,
                        shard_contexts=2)  # fmt: skip
        for _ in range(2):
            lake.ingest("text", model=tiny.MODEL_NAME, saes=[sae], dense=[("resid_post", 0)],
                        device="cpu")  # fmt: skip
            if lake.sql("SELECT * FROM corpora WHERE n_documents = 1").num_rows:
                before = lake.snapshot
                lake.append_corpus("text", tmp_path / "b.txt")
        rows = [
            lake.sql(f"SELECT * FROM {t} ORDER BY ALL").to_pylist() for t in ("codes", "features")
        ]
        old = scopelake.open(place, before).activations(0)
        told.append((rows, lake.activations(0)[:].tobytes(), old.shape, old[:].tobytes()))
        assert lake.verify().is_whole
    assert told[0] == told[1]
