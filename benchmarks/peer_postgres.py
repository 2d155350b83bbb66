"""PostgreSQL as a peer: Neuronpedia's table of contexts by feature, and a plain table of firings.

The server is the benchmark's own: a temporary folder, a Unix socket and no port, not as root, and
it is stopped by the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from peer_files import WINDOW, K, Top, around, parts, token_texts
from query_lake import LENGTH

from scopelake.store.lake_store import LakeStore

if TYPE_CHECKING:
    import psycopg

_SETTINGS: Final = {
    "listen_addresses": "",
    "shared_buffers": "2GB",
    "work_mem": "256MB",
    "maintenance_work_mem": "1GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "8GB",
    "fsync": "off",
    "autovacuum": "off",
}
"""What makes loading quick and disturbs no question."""

_TEXT, _FLOAT8 = 25, 701
"""Numbers of PostgreSQL's types."""

_PR_SET_PDEATHSIG: Final = 1

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"


def programs() -> Path | None:
    """The folder of initdb and postgres; None if there is none."""
    found = shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in places if (p / "initdb").exists()), None)


def _user() -> str | None:
    """Who runs the server: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def server() -> Iterator[str]:
    """Run a server of its own, and say how to connect to it."""
    folder = Path(tempfile.mkdtemp(prefix="peer-postgres-"))
    user, bin_folder = _user(), programs()
    assert bin_folder is not None
    data = folder / "data"
    if user is not None:
        shutil.chown(folder, user)
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"],
            check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        settings = {**_SETTINGS, "unix_socket_directories": str(folder)}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, *options],
                user=user, cwd=folder, stderr=log, preexec_fn=_end_with_parent,
            )  # fmt: skip
        try:
            _wait(folder, process)
            yield f"host={folder} user=bench dbname=postgres"
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait()
    finally:
        shutil.rmtree(folder)


def _end_with_parent() -> None:
    """Let the kernel stop the server too if this process is killed (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the server takes connections."""
    import psycopg

    for _ in range(600):
        try:
            psycopg.connect(f"host={folder} user=bench dbname=postgres").close()
        except psycopg.OperationalError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            return
    raise SystemExit(
        f"a PostgreSQL server was started in {folder}; it takes no connections and says "
        f"{(folder / 'log').read_text()[-500:]!r}; start one by hand to see why"
    )


def _array(kind: int, n: int) -> bytes:
    """What comes before the elements of an array of one dimension without nulls."""
    return np.array([1, 0, kind, n, 1], ">i4").tobytes()


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def _texts(tokens: list[str]) -> bytes:
    """An array of texts, as a field of a row."""
    return _field(_array(_TEXT, len(tokens)) + b"".join(_field(t.encode()) for t in tokens))


class Neuronpedia:
    """A row for each context in which a feature fires, as Neuronpedia's table Activation.

    Whole contexts, the text of every token and its activation; the index is on model, layer and
    feature alone, so that a question sorts all rows of a feature.
    """

    name = "PostgreSQL, Neuronpedia's table"
    slow = False

    def __init__(self, database: psycopg.Connection[Any], store: LakeStore, step: int) -> None:
        self._database = database
        texts = {context: _texts(tokens) for context, tokens in token_texts(store)}
        with database.transaction(), database.cursor() as cursor:
            cursor.execute(
                'CREATE TABLE "Activation" ("modelId" text, layer text, "index" text, '
                'tokens text[], "values" float8[], "maxValue" float8)'
            )
            with cursor.copy('COPY "Activation" FROM STDIN (FORMAT binary, FREEZE)') as copy:
                copy.write(_HEADER)
                for feature, context, position, activation in contexts_of(store, step):
                    copy.write(_row(feature, texts[context], position, activation))
                copy.write(_TRAILER)
        database.execute('CREATE INDEX ON "Activation" ("modelId", layer, "index")')
        database.execute('ANALYZE "Activation"')

    def top(self, feature: int) -> Top:
        """The strongest contexts."""
        rows = self._database.execute(
            'SELECT tokens, "values", "maxValue" FROM "Activation" WHERE "modelId" = %s '
            'AND layer = %s AND "index" = %s ORDER BY "maxValue" DESC LIMIT %s',
            ["gemma-3-1b", "12-gemmascope-res-16k", str(feature), K], binary=True,
        ).fetchall()  # fmt: skip
        found: Top = []
        for tokens, values, strongest in rows:
            window = around(values.index(strongest))
            _ = values[window]
            found.append((strongest, tokens[window]))
        return found


def _row(feature: int, tokens: bytes, position: Any, activation: Any) -> bytes:  # noqa: ANN401
    """A row of the table, with zero where the feature does not fire."""
    values = np.zeros(LENGTH, [("n", ">i4"), ("v", ">f8")])
    values["n"] = 8
    values["v"][position] = activation
    strongest = np.array(activation.max(), ">f8").tobytes()
    keys = (b"gemma-3-1b", b"12-gemmascope-res-16k", str(feature).encode())
    return b"".join([
        b"\x00\x06", *(_field(key) for key in keys), tokens,
        _field(_array(_FLOAT8, LENGTH) + values.tobytes()), _field(strongest),
    ])  # fmt: skip


def contexts_of(store: LakeStore, step: int) -> Iterator[tuple[int, int, Any, Any]]:
    """Of every `step`-th feature each context with the positions and activations there."""
    for rows in parts(store, "postings", ["feature", "context", "position", "activation"]):
        feature, context, position, activation = (rows[c].to_numpy() for c in rows.column_names)
        starts = context_starts(feature, context)
        ends = np.append(starts[1:], len(feature))
        kept = feature[starts] % step == 0
        for a, b in zip(starts[kept].tolist(), ends[kept].tolist(), strict=True):
            yield int(feature[a]), int(context[a]), position[a:b], activation[a:b]


def context_starts(feature: Any, context: Any) -> Any:  # noqa: ANN401
    """Where the firings of a feature in a context begin; they are sorted by both."""
    changes = (np.diff(feature) != 0) | (np.diff(context) != 0)
    return np.flatnonzero(np.concatenate([[True], changes]))


class PlainTable:
    """All firings in one table, stored in the order of features, and the texts of contexts.

    Its index gives firings strongest first, so as many are read as have K contexts among them.
    Windows have the text; of activations only the peak's, for others are not within reach of this
    index.
    """

    name = "PostgreSQL, a row a firing, activations of peaks only"
    slow = False

    def __init__(self, database: psycopg.Connection[Any], store: LakeStore) -> None:
        self._database = database
        with database.transaction(), database.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE firings (feature int4, context int4, position int4, "
                "activation float4)"
            )
            with cursor.copy("COPY firings FROM STDIN (FORMAT binary, FREEZE)") as copy:
                copy.write(_HEADER)
                for rows in parts(store, "postings", list(_COLUMNS)):
                    for batch in rows.to_batches(1 << 17):
                        copy.write(_firings(batch))
                copy.write(_TRAILER)
            cursor.execute("CREATE TABLE contexts (context int4 PRIMARY KEY, tokens text[])")
            with cursor.copy("COPY contexts FROM STDIN (FORMAT binary, FREEZE)") as copy:
                copy.write(_HEADER)
                for context, tokens in token_texts(store):
                    number = _field(context.to_bytes(4, "big"))
                    copy.write(b"\x00\x02" + number + _texts(tokens))
                copy.write(_TRAILER)
        database.execute("CREATE INDEX ON firings (feature, activation DESC)")
        database.execute("ANALYZE")

    def top(self, feature: int) -> Top:
        """The strongest contexts."""
        limit = 4 * K
        while True:
            rows = self._database.execute(
                "SELECT context, position, activation FROM firings WHERE feature = %s "
                "ORDER BY activation DESC, context, position LIMIT %s",
                [feature, limit], binary=True,
            ).fetchall()  # fmt: skip
            peaks: dict[int, tuple[int, float]] = {}
            for context, position, activation in rows:
                peaks.setdefault(context, (position, activation))
            if len(peaks) >= K or len(rows) < limit:
                break
            limit *= 4
        found = list(peaks.items())[:K]
        texts = self._database.execute(
            "SELECT context, tokens[greatest(1, position + 1 - %s) : position + 1 + %s] "
            "FROM unnest(%s::int4[], %s::int4[]) AS peaks (context, position) "
            "JOIN contexts USING (context)",
            [WINDOW, WINDOW, [c for c, _ in found], [p for _, (p, _) in found]], binary=True,
        ).fetchall()  # fmt: skip
        tokens = dict(texts)
        return [(activation, tokens[context]) for context, (_, activation) in found]


_COLUMNS: Final = {"feature": ">i4", "context": ">i4", "position": ">i4", "activation": ">f4"}


def _firings(batch: Any) -> bytes:  # noqa: ANN401
    """Rows of the table, each value behind its length."""
    sizes = {f"n_{name}": ">i4" for name in _COLUMNS}
    fields = [("fields", ">i2")]
    for name, kind in _COLUMNS.items():
        fields += [(f"n_{name}", sizes[f"n_{name}"]), (name, kind)]
    rows = np.empty(batch.num_rows, fields)
    rows["fields"] = len(_COLUMNS)
    for name in _COLUMNS:
        rows[f"n_{name}"] = 4
        rows[name] = batch[name].to_numpy()
    return rows.tobytes()
