"""Sources beyond plain files: compressed ones, patterns, chats of ShareGPT, data sets."""

import bz2
import gzip
import json
import lzma
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scopelake.errors import CorpusSourceError, InvalidArgumentError, MissingDependencyError
from scopelake.ingest.sources import CorpusSource

COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def read(source, **options):
    return list(CorpusSource.find(source, **options).documents())


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_as_what_they_hold(tmp_path, suffix):
    lines = [json.dumps({"text": f"line {i}"}) + "\n" for i in range(50)]
    compress = COMPRESS[suffix]
    # Two streams, one behind the other, are one file: so do tools that append.
    data = compress("".join(lines[:20]).encode()) + compress("".join(lines[20:]).encode())
    (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
    (tmp_path / f"b.txt{suffix}").write_bytes(compress(b"\xef\xbb\xbfhello"))
    found = read(tmp_path)
    assert [d.text for d in found] == [*(f"line {i}" for i in range(50)), "hello"]
    assert (found[0].id, found[-1].id) == ("a:1", f"b.txt{suffix}")
    assert found[3].origin.endswith(f"a.jsonl{suffix}:4")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_that_are_cut_off_or_no_such_are_refused(tmp_path, suffix):
    generator = np.random.default_rng(0)
    lines = "".join(json.dumps({"text": generator.bytes(40).hex()}) + "\n" for _ in range(2000))
    data = COMPRESS[suffix](lines.encode())
    for name, wrong in (("cut", data[: len(data) // 2]), ("end", data[:-4]), ("no", b"x" * 99)):
        path = tmp_path / f"{name}.jsonl{suffix}"
        path.write_bytes(wrong)
        with pytest.raises(CorpusSourceError, match=rf"{name}.* it is not a whole \{suffix} file"):
            read(path)
    (tmp_path / f"a.parquet{suffix}").write_bytes(data)
    with pytest.raises(CorpusSourceError, match="is no suffix of text or records"):
        read(tmp_path / f"a.parquet{suffix}")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_records_are_never_all_in_memory(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    line = json.dumps({"text": "x" * 10_000}) + "\n"
    data = (line * 3000).encode()
    path.write_bytes(COMPRESS[suffix](data) if suffix else data)
    del data
    tracemalloc.start()
    n_documents = sum(1 for _ in CorpusSource.find(path).documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_documents == 3000
    assert peak < 8 << 20  # of 30 MB


def test_patterns_name_files_and_folders(tmp_path):
    for name in ("x/b.jsonl", "x/a.jsonl", "y/z/c.jsonl", "y/no.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert [d.text for d in read(f"{tmp_path}/x/*.jsonl")] == ["x/a.jsonl", "x/b.jsonl"]
    assert [d.text for d in read(f"{tmp_path}/**/[bc].jsonl")] == ["x/b.jsonl", "y/z/c.jsonl"]
    assert [d.id for d in read(f"{tmp_path}/[xy]", root=tmp_path)] == [
        "x/a:1", "x/b:1", "y/z/c:1",
    ]  # fmt: skip
    with pytest.raises(CorpusSourceError, match=r"no\.bin .* \.bin is no suffix"):
        read(f"{tmp_path}/y/*")
    with pytest.raises(CorpusSourceError, match="no file fits this pattern"):
        read(f"{tmp_path}/*.txt")


SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
PLAIN = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_chats_of_sharegpt(tmp_path, key):
    (tmp_path / "a.jsonl").write_text(json.dumps({key: SHARED, "source": "s"}))
    (document,) = read(tmp_path / "a.jsonl", chat=True)
    assert document.messages == PLAIN
    assert document.metadata == {"source": "s"}
    pq.write_table(pa.table({key: [SHARED]}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet", chat=True)[0].messages == PLAIN


def test_a_speaker_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": [{"from": "x", "value": ""}]}))
    with pytest.raises(
        CorpusSourceError, match=r"a\.jsonl:1 .* from 'x'; speakers are human, user"
    ):
        read(tmp_path / "a.jsonl", chat=True)
    (tmp_path / "b.jsonl").write_text(json.dumps({"conversations": [{"from": "gpt"}]}))
    with pytest.raises(CorpusSourceError, match=r"b\.jsonl:1 has a message without"):
        read(tmp_path / "b.jsonl", chat=True)


def test_another_column_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"content": "x", "text": "y", "id": None}))
    (document,) = read(tmp_path / "a.jsonl", text_column="content")
    assert (document.text, document.id, document.metadata) == ("x", "a:1", {"text": "y"})
    with pytest.raises(CorpusSourceError, match="its 'body'; it has content, text, id"):
        read(tmp_path / "a.jsonl", text_column="body")
    (tmp_path / "b.jsonl").write_text(json.dumps({"talk": SHARED}))
    assert read(tmp_path / "b.jsonl", chat=True, text_column="talk")[0].messages == PLAIN


@pytest.fixture
def dataset():
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"row {i}" for i in range(3000)], "n": list(range(3000))}
    return datasets.Dataset.from_dict(rows)


def test_data_sets_are_read_row_by_row(dataset):
    found = read(dataset)
    assert [d.text for d in found] == [f"row {i}" for i in range(3000)]
    assert (found[7].id, found[7].metadata) == ("rows:7", {"n": 7})
    assert [d.text for d in read(dataset.to_iterable_dataset())] == [d.text for d in found]
    assert len(read([dataset.select(range(5))])) == 5


def test_a_saved_data_set_needs_no_package(tmp_path, dataset, monkeypatch):
    import datasets

    dataset.select(range(2999, -1, -1)).save_to_disk(tmp_path / "saved", num_shards=3)
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    chats = datasets.Dataset.from_dict({"conversations": [SHARED]})
    chats.save_to_disk(tmp_path / "chats")
    monkeypatch.setitem(sys.modules, "datasets", None)
    found = read(tmp_path / "saved")
    assert [d.text for d in found] == [f"row {i}" for i in range(2999, -1, -1)]
    assert found[2].id == "saved:2"
    assert read(tmp_path / "chats", chat=True)[0].messages == PLAIN
    with pytest.raises(CorpusSourceError, match=r"several splits \(.*splits/train\)"):
        read(tmp_path / "splits")
    (tmp_path / "saved" / "data-00001-of-00003.arrow").write_bytes(b"x" * 99)
    with pytest.raises(CorpusSourceError, match="is no whole data set"):
        read(tmp_path / "saved")


def test_the_hub_is_streamed(monkeypatch, dataset):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return dataset.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read("hf://org/texts@v1:part/test")) == 3000
    assert read("hf://org/texts")[0].id == "texts-train:0"
    assert asked == [
        (("org/texts", "part"), {"split": "test", "revision": "v1", "streaming": True}),
        (("org/texts", None), {"split": "train", "revision": None, "streaming": True}),
    ]


def test_what_is_no_source_is_refused(monkeypatch, dataset):
    import datasets

    with pytest.raises(InvalidArgumentError, match="give one of them, such as"):
        read(datasets.DatasetDict({"train": dataset, "test": dataset}))
    with pytest.raises(InvalidArgumentError, match="a data set of the hub is hf://"):
        read("hf://texts")
    with pytest.raises(InvalidArgumentError, match="corpora are read from files, s3://"):
        read("gs://bucket/a.jsonl")
    monkeypatch.setattr("scopelake.ingest.corpus_datasets.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'scopelake\[datasets\]'"):
        read("hf://org/texts")
