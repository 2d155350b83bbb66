"""A lake on S3 does what a lake in a folder does, and says what goes wrong without credentials."""

import io
import json
import logging

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from obstore.exceptions import BaseError

import scopelake
from scopelake import tiny
from scopelake.cli import main
from scopelake.errors import (
    DamagedFileError,
    InvalidArgumentError,
    LakeExistsError,
    LakeNotFoundError,
    ObjectStoreError,
    QueryError,
)

BUCKET = "lakes"
KEY_ID, SECRET = "AKIAEXAMPLEONLYFORTESTS", "secret-that-must-never-be-shown"
SAES = [tiny.coders_path() / "resid_post_all/layer_0*", tiny.coders_path() / "mlp_out_all/*"]
TABLES = ("contexts", "codes", "postings", "peaks", "features", "saes", "models")


def fill(lake, folder):
    text = tiny.stdlib_files(held_out=True)[1].read_text(encoding="utf-8")
    (folder / "a.txt").write_text(text[:3000])
    lake.add_corpus("text", folder / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64,
                    shard_contexts=8)  # fmt: skip
    lake.ingest("text", model=tiny.MODEL_NAME, saes=SAES, dense=[("resid_post", 0)], device="cpu")
    return lake


def answers(lake):
    rows = {t: lake.sql(f"SELECT * FROM {t} ORDER BY ALL").to_pylist() for t in TABLES}
    feature = lake.sql("SELECT feature FROM features ORDER BY firings DESC, feature LIMIT 1")
    top = lake.top_contexts(feature["feature"][0].as_py(), layer=0, site="resid_post", k=3)
    here = lake.features_at(0, position=3, k=5)
    macro = lake.sql(
        "FROM top_contexts(0, ?, k := 3)", [feature["feature"][0].as_py()], memory="1GB"
    )
    assert macro.select(top.table.column_names) == top.table
    frames = [
        frame.compute(scheduler="sync").reset_index().sort_values(keys).to_dict("records")
        for frame, keys in (
            (lake.codes(layer=0, site="resid_post"), ["context", "position", "feature"]),
            (lake.postings(layer=0, site="resid_post"), ["context", "position", "feature"]),
            (lake.contexts(columns=["n_tokens", "text"]), ["context"]),
        )
    ]
    dense = lake.activations(0)[:].tobytes()
    return rows, top.table.to_pylist(), here.table.to_pylist(), frames, dense


@pytest.fixture(scope="module")
def there(module_server, tmp_path_factory):
    """A filled lake on S3, and one in a folder with the same."""
    root = tmp_path_factory.mktemp("objects")
    remote = fill(scopelake.create(f"s3://{BUCKET}/filled"), root)
    return remote, fill(scopelake.create(root / "folder"), root)


@pytest.mark.slow
def test_every_verb_gives_the_same_on_s3_as_in_a_folder(server, there):
    remote, local = there
    before = answers(local)
    assert answers(remote) == before
    assert (remote.verify().is_whole, remote.url) == (True, f"s3://{BUCKET}/filled")
    assert answers(scopelake.open(remote.url)) == before
    again = remote.ingest("text", model=tiny.MODEL_NAME, saes=SAES, dense=[("resid_post", 0)],
                          device="cpu")  # fmt: skip
    assert again.already_complete
    old = remote.snapshot
    assert remote.compact().n_parts == local.compact().n_parts == 8
    after = answers(remote)
    assert after == answers(local)
    assert after[1:] == before[1:]
    assert answers(scopelake.open(remote.url, snapshot=old)) == before
    n_keys = len(server.keys(remote.url))
    assert remote.vacuum(None).n_files > 0
    assert len(server.keys(remote.url)) < n_keys
    assert remote.verify().is_whole
    assert answers(remote) == after
    with pytest.raises(InvalidArgumentError, match="object store"):
        _ = remote.path


@pytest.mark.slow
def test_labels_and_exports_are_the_same_on_s3_as_in_a_folder(there, tmp_path):
    (tmp_path / "labels.csv").write_text("feature,label\n3,a lake\n5,a river\n")
    sae = "resid_post_all/layer_0_width_1024_l0_small"
    for lake, place in zip(there, ("remote", "local"), strict=True):
        (tmp_path / place).mkdir()
        lake.add_labels(tmp_path / "labels.csv", sae=sae)
        for form in ("delphi", "neuronpedia", "circuit-tracer", "datasets"):
            lake.export(form, tmp_path / place / form, sae=sae)
        assert lake.verify().is_whole
        assert lake.remove_labels("labels", sae=sae).n_labels == 2
    paths = [p for p in (tmp_path / "local").rglob("*.*") if p.is_file()]
    assert {p.parent.name for p in paths} >= {"firings", "labels", "features"}
    for path in paths:
        other = tmp_path / "remote" / path.relative_to(tmp_path / "local")
        if path.suffix == ".parquet":
            assert pq.read_table(path).equals(pq.read_table(other)), path
        elif path.name not in ("README.md", "scopelake.json", "config.json"):  # name the lake
            assert path.read_bytes() == other.read_bytes(), path


@pytest.mark.slow
def test_the_command_line_takes_the_url(server, url, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("def depth(lake):\n    return lake.depth\n")
    assert main(["create", url]) == 0
    assert main(["add-corpus", url, "text", str(tmp_path / "a.txt"), "--tokenizer",
                 tiny.MODEL_NAME, "--context-length", "32"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["sql", url, "SELECT count(*) AS n FROM tokens", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] > 5
    assert main(["info", url]) == 0
    assert url in capsys.readouterr().out
    assert main(["create", url]) == 2
    assert "a lake is there" in capsys.readouterr().err
    assert main(["sql", url, "--init"]) == 0
    init = capsys.readouterr().out
    assert "LOAD httpfs" in init
    assert KEY_ID not in init
    assert SECRET not in init


def test_what_is_not_a_lake_is_refused(server, url):
    with pytest.raises(LakeNotFoundError, match="nothing is there"):
        scopelake.open(url)
    for wrong in ("s3://", f"s3://{BUCKET}", f"s3://{BUCKET}/", "gs://bucket/lake", "s3:///lake",
                  f"s3://{BUCKET}/../x", f"s3://{BUCKET}/a//b"):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match="s3://<bucket>/<prefix>"):
            scopelake.create(wrong)
    with pytest.raises(ObjectStoreError, match="there is no bucket no-such-bucket; "):
        scopelake.create("s3://no-such-bucket/lake")
    server.client.put_object(
        Bucket=BUCKET, Key=f"{url.removeprefix(f's3://{BUCKET}/')}/x", Body=b""
    )
    with pytest.raises(LakeExistsError, match="something is there"):
        scopelake.create(url)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:5987", "ftp://host", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert main(["info", f"s3://{BUCKET}/lake"]) == 2
    assert f"AWS_ENDPOINT_URL is {endpoint!r}; it has to be http(s)://" in capsys.readouterr().err


def test_a_password_in_the_endpoint_is_refused_and_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:1")
    assert main(["info", f"s3://{BUCKET}/lake"]) == 2
    said = capsys.readouterr().err
    assert "AWS_ENDPOINT_URL has a user or a password in it" in said
    assert "hunter2" not in said


def test_missing_credentials_are_called_so(url, monkeypatch):
    answer = BaseError("Generic S3 error: PUT http://169.254.169.254/latest/api/token: 403")

    def refuse(*words, **options):
        raise answer

    monkeypatch.setattr(obstore, "list", refuse)
    with pytest.raises(ObjectStoreError, match="no credentials are set, .* AWS_ACCESS_KEY_ID"):
        scopelake.open(url)


def test_a_flipped_bit_is_found_and_answers_nothing(server, there, tmp_path):
    remote, _ = there
    prefix = f"{remote.url.removeprefix(f's3://{BUCKET}/')}/tables/codes/"
    live = remote.sql("SELECT path FROM files WHERE kind = 'codes'")["path"].to_pylist()
    key = next(k for k in server.keys(remote.url) if k.startswith(prefix) and k[7:] in live)
    whole = server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 4
    server.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(damaged))
    try:
        (finding,) = remote.verify().findings
        assert (finding.problem, finding.table) == ("damaged", "codes")
        # Another process: this one has seen the object when it was whole.
        from scopelake.store import integrity

        integrity._checked.clear()
        with pytest.raises(DamagedFileError, match="checksum"):
            scopelake.open(remote.url).sql("SELECT sum(activation) FROM codes")
    finally:
        server.client.put_object(Bucket=BUCKET, Key=key, Body=whole)
    assert remote.verify().is_whole


@pytest.fixture
def messages():
    """Everything that any library logs meanwhile, but the client of the test itself."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    handler.addFilter(lambda record: not record.name.startswith(("boto", "urllib3", "s3transfer")))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def test_credentials_are_nowhere_to_be_seen(server, there, messages, capsys, tmp_path):
    remote, _ = there
    shown = [repr(remote), str(remote.info()), remote._repr_html_()]
    shown += [str(remote.sql(f"SELECT * FROM {t}").to_pylist()) for t in ("runs", "files", "saes")]
    shown.append(str(remote.sql("EXPLAIN SELECT * FROM codes").to_pylist()))
    settings = remote._connection.execute("SELECT * FROM duckdb_settings()", reads={})
    shown.append(str(settings.fetchall()))
    shown.append(remote.sql_init())
    for query in (
        "FROM duckdb_secrets()",
        "SELECT * FROM which_secret('s3://lakes/x', 's3')",
        "SELECT current_setting('s3_secret_access_key')",
        "SELECT * FROM duckdb_settings()",
    ):
        with pytest.raises(QueryError, match="SQL reads only a lake's views") as refused:
            remote.sql(query)
        shown.append(str(refused.value))
    with pytest.raises(QueryError, match="duckdb_secrets"):
        remote.top_contexts(1, layer=0, site="resid_post",
                            where="position IN (SELECT 1 FROM duckdb_secrets())")  # fmt: skip
    server.fail(methods=["GET", "HEAD", "PUT"], deny=True)
    for act in (lambda: scopelake.open(remote.url), remote.verify, remote.compact):
        with pytest.raises(Exception, match=r".") as refused:
            act()
        shown.append(str(refused.value))
    assert main(["info", remote.url]) == 2
    server.fail()
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    stored = b"".join(
        server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        for key in server.keys(remote.url)
        if key.endswith(".json")
    )
    shown += [printed.out, printed.err, stored.decode(), messages.getvalue()]
    for secret in (KEY_ID, SECRET):
        assert [text[:200] for text in shown if secret in text] == []


def test_an_endpoint_that_is_not_there_is_one_line(monkeypatch, capsys):
    from scopelake.store import object_root

    monkeypatch.setattr(object_root, "_RETRIES", {"max_retries": 1})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert main(["info", "s3://lakes/nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "AWS_ENDPOINT_URL" in error
    assert KEY_ID not in error


def test_dense_activations_are_read_by_range(server, there):
    remote, local = there
    array = remote.activations(0)
    assert array.shape == local.activations(0).shape
    server.fail()
    part = array[3, 5:9, :]
    assert server.fail()["requests"] <= 6
    assert np.array_equal(np.asarray(part, np.float32),
                          np.asarray(local.activations(0)[3, 5:9, :], np.float32))  # fmt: skip
    assert isinstance(remote.sql("SELECT 1 AS one"), pa.Table)
