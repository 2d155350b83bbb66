"""One question to our lake and to what there is instead: the 20 strongest contexts of a feature.

    make bench-query-peers          1e7 and 1e8 firings, in up to 20 GB of disk

Every peer gets the firings and texts of the lakes of query_lake.py: unsorted Parquet with DuckDB,
delphi's cache with its own loader, and PostgreSQL with the table and index of Neuronpedia, and
with a plain table of firings. Where not every feature's contexts fit Neuronpedia's table, all are
asked about features that are in it, and the measure says so. Before anything is timed every peer
has to give the activations that ours gives, and the same windows if it keeps texts. Then each
feature's question goes to one after the other, all warm; slow peers are asked about the first
features of a class only. PostgreSQL's programs are taken from the PATH or /usr/lib/postgresql.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
from peer_files import WINDOW, K, Top, UnsortedParquet, parts
from peer_postgres import Neuronpedia, PlainTable, context_starts, programs, server
from query_lake import SAE, build
from record import Measure, write_results

import scopelake
from query import CLASSES
from scopelake.lake import Lake
from scopelake.store.lake_store import LakeStore

QUESTIONS, SLOW = 32, 6
"""Features of each class of density; those of them that slow peers are asked about."""

MEMORY: Final = ("median", "dense")
"""Classes about whose first feature a new process is asked, for its memory."""

ROWS: Final = 200_000
"""Of Neuronpedia's table at most, about; each has the texts and activations of 1,024 tokens, which
take the server a millisecond. What a question costs is up to the rows of its own feature."""

PEERS: Final = ("parquet", "delphi", "neuronpedia", "firings")

_ASK: Final = """
import sys
from pathlib import Path
from record import peak_mib

peer, place, feature = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if peer == "scopelake":
    import scopelake

    ask = scopelake.open(place).top_contexts
else:
    from peer_delphi import Delphi

    ask = Delphi(place).top
before = peak_mib()
ask(feature)
print(before, peak_mib())
"""

T = TypeVar("T")


class Peer(Protocol):
    """Who can be asked for the strongest contexts."""

    name: str
    slow: bool

    def top(self, feature: int) -> Top:
        """The strongest contexts."""
        ...


class Ours:
    """The lake."""

    name = "scopelake"
    slow = False

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def top(self, feature: int) -> Top:
        """The strongest contexts."""
        found = self._lake.top_contexts(feature, k=K, window=WINDOW)
        activations, tokens = (found.table[c].to_pylist() for c in ("activation", "tokens"))
        return list(zip(activations, tokens, strict=True))


def step_of(store: LakeStore) -> int:
    """Every how manieth feature Neuronpedia's table takes."""
    rows = sum(
        len(context_starts(part["feature"].to_numpy(), part["context"].to_numpy()))
        for part in parts(store, "postings", ["feature", "context"])
    )
    return -(-rows // ROWS)


def of_step(store: LakeStore, step: int) -> int:
    """Firings of every `step`-th feature."""
    features = (part["feature"].to_numpy() for part in parts(store, "postings", ["feature"]))
    return sum(int((feature % step == 0).sum()) for feature in features)


def size_of(store: LakeStore) -> int:
    """Bytes of the lake's latest snapshot: firings in both orders, what is derived, and texts."""
    snapshot = store.snapshot()
    tables = ("codes", "postings", "peaks", "samples", "features", "contexts")
    files = (f.path for table in tables for f in store.data_files(table, snapshot))
    return sum((store.root.path / path).stat().st_size for path in files)


def features_of(lake: Lake, step: int) -> dict[str, list[int]]:
    """Features of each class of density that fire, at random, of every `step`-th.

    A class without any is left out: a million firings are too few for rare features.
    """
    rows = lake.sql(
        f"SELECT feature, density FROM features WHERE firings > 0 AND feature % {step} = 0"
    )
    feature, density = rows["feature"].to_numpy(), rows["density"].to_numpy()
    rng = np.random.default_rng(0)
    of_class = {
        name: feature[(density >= low) & (density < high)] for name, (low, high) in CLASSES.items()
    }
    return {
        name: rng.choice(features, QUESTIONS).tolist()
        for name, features in of_class.items()
        if len(features)
    }


def loaded(
    stack: ExitStack, store: LakeStore, names: list[str], step: int, folder: Path
) -> Iterator[tuple[Peer, float, int]]:
    """The peers named, each with the seconds that loading took and the bytes it occupies."""
    for name in [n for n in names if n in ("parquet", "delphi")]:
        place = folder / name
        place.mkdir()
        peer, seconds = unsorted(place, store) if name == "parquet" else cached(place, store)
        yield peer, seconds, sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    if tables := [n for n in names if n in ("neuronpedia", "firings")]:
        yield from tabled(stack, store, tables, step)


def unsorted(folder: Path, store: LakeStore) -> tuple[Peer, float]:
    """DuckDB over unsorted Parquet, and the seconds that writing took."""
    return timed(lambda: UnsortedParquet(folder, store))


def cached(folder: Path, store: LakeStore) -> tuple[Peer, float]:
    """delphi and its cache, and the seconds that writing took."""
    from peer_delphi import Delphi, write_cache

    _, seconds = timed(lambda: write_cache(folder, store))
    return Delphi(folder), seconds


def tabled(
    stack: ExitStack, store: LakeStore, names: list[str], step: int
) -> Iterator[tuple[Peer, float, int]]:
    """PostgreSQL's tables, each with the seconds that loading took and the bytes it occupies."""
    import psycopg

    where = stack.enter_context(server())
    database = stack.enter_context(psycopg.connect(where, autocommit=True))

    def size() -> int:
        found = database.execute("SELECT pg_database_size(current_database())").fetchone()
        assert found is not None
        return int(found[0])

    for name in names:
        before = size()
        table: Callable[[], Peer] = (
            (lambda: Neuronpedia(database, store, step))
            if name == "neuronpedia"
            else (lambda: PlainTable(database, store))
        )
        peer, seconds = timed(table)
        yield peer, seconds, size() - before


def timed(what: Callable[[], T]) -> tuple[T, float]:
    """What comes of it, and the seconds that it takes."""
    start = time.perf_counter()
    found = what()
    return found, time.perf_counter() - start


def check(ours: Peer, peers: list[Peer], of_class: dict[str, list[int]]) -> None:
    """Refuse to go on if a peer's activations or windows are not those of the lake."""
    for features in of_class.values():
        for i, feature in enumerate(features):
            expected = ours.top(feature)
            for peer in peers:
                if (i < SLOW or not peer.slow) and not same(expected, found := peer.top(feature)):
                    raise SystemExit(
                        f"the strongest contexts of feature {feature} were asked for; the lake "
                        f"says {expected}, {peer.name} says {found}; one of them is wrong"
                    )


def same(expected: Top, found: Top) -> bool:
    """Whether activations are equal, and windows are but for contexts that tie.

    What ties with the last may stand for others that were left out.
    """
    activations = [activation for activation, _ in expected]
    if not activations or activations != [activation for activation, _ in found]:
        return False
    ties = {a for a, n in Counter(activations).items() if n > 1} | {activations[-1]}
    return all(
        activation in ties or theirs is None or theirs == ours
        for (activation, ours), (_, theirs) in zip(expected, found, strict=True)
    )


def memory(what: str, peer: str, place: Path, feature: int) -> list[Measure]:
    """The peak of a new process that asks one question, and the peak before it asks, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, peer, str(place), str(feature)],
        check=True, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    before, peak = (float(value) for value in done.stdout.split())
    name = f"{what}: peak memory of a new process, {peer}"
    return [Measure(f"{name}, imported", (before,), "MiB"), Measure(name, (peak,), "MiB")]


def memories(places: dict[str, Path], what: str, of_class: dict[str, list[int]]) -> list[Measure]:
    """The memory of new processes, of each peer whose place is there."""
    return [
        measure
        for peer, place in places.items()
        for name in MEMORY
        if place.exists() and name in of_class
        for measure in memory(f"{what}, {name}", peer, place, of_class[name][0])
    ]


def questions(ours: Peer, peers: list[Peer], what: str, features: list[int]) -> list[Measure]:
    """The questions about one class of features, one after the other to everyone."""
    taken: dict[str, list[float]] = {peer.name: [] for peer in [ours, *peers]}
    for i, feature in enumerate(features):
        for peer in [ours, *peers]:
            if i < SLOW or not peer.slow:
                _, seconds = timed(lambda peer=peer, feature=feature: peer.top(feature))
                taken[peer.name].append(1e3 * seconds)
    found = []
    for name, times in taken.items():
        found.append(Measure(f"{what}: {name}", tuple(times), "ms"))
        if name != ours.name:
            # Slow peers were asked about the first features only.
            ratios = tuple(t / mine for t, mine in zip(times, taken[ours.name], strict=False))
            found.append(Measure(f"{what}: {name} / {ours.name}", ratios, "x"))
    return found


def measure(root: Path, n_firings: float, names: list[str]) -> list[Measure]:
    """Build a lake of so many firings, unless it is there, load the peers, and ask."""
    if not root.exists():
        build(root, int(n_firings))
    store = LakeStore.open(root)
    what = f"{n_firings:.0e}"
    n = sum(f.n_rows for f in store.data_files("postings", store.snapshot()))
    step = step_of(store) if "neuronpedia" in names else 1
    lake = scopelake.open(root)
    ours, of_class, peers = Ours(lake), features_of(lake, step), []
    found = [
        Measure(f"{what}: firings", (n,), "firings"),
        Measure(f"{what}: features asked about are one in", (step,), "features"),
        Measure(f"{what}: on disk, {ours.name}", (size_of(store) / n,), "B/firing"),
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for peer, seconds, n_bytes in loaded(stack, store, names, step, folder):
            peers.append(peer)
            partial = isinstance(peer, Neuronpedia) and step > 1
            whose = f"{peer.name}, of one feature in {step}" if partial else peer.name
            held = of_step(store, step) if partial else n
            found.append(Measure(f"{what}: loading, {whose}", (seconds,), "s"))
            found.append(Measure(f"{what}: on disk, {whose}", (n_bytes / held,), "B/firing"))
        check(ours, peers, of_class)
        found += memories({"scopelake": root, "delphi": folder / "delphi"}, what, of_class)
        for name, features in of_class.items():
            found += questions(ours, peers, f"{what}: top 20 contexts, {name}", features)
    return found


def missing(names: list[str]) -> str:
    """What these peers need and is not there, as a line; empty if all is there."""
    lacking = [
        f"{name} was asked for; no {needed} was found"
        for name, needed, there in (
            ("delphi", "package eai-delphi", importlib.util.find_spec("delphi")),
            ("neuronpedia", "package psycopg", importlib.util.find_spec("psycopg")),
            ("firings", "package psycopg", importlib.util.find_spec("psycopg")),
            ("neuronpedia", "program postgres", programs()),
            ("firings", "program postgres", programs()),
        )
        if name in names and not there
    ]
    return f"{lacking[0]}; install it, or name other --peers" if lacking else ""


def main() -> int:
    """Measure and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--firings", type=float, nargs="+", default=[1e7, 1e8])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--keep", type=Path, help="folder of the lakes, which are kept there")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if lacking := missing(arguments.peers):
        parser.error(lacking)
    folder = arguments.keep or Path(tempfile.mkdtemp())
    if arguments.one:
        found = measure(folder / f"{arguments.one:.0e}", arguments.one, arguments.peers)
        print(json.dumps([[m.name, m.values, m.unit] for m in found]))
        return 0
    measures = []
    try:
        for n_firings in arguments.firings:
            # A process of its own, so that its memory is that of this size alone.
            command = [sys.executable, __file__, "--one", str(n_firings), "--keep", str(folder),
                       "--peers", *arguments.peers]  # fmt: skip
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE)
            if done.returncode:  # it has said why
                return done.returncode
            measures += [Measure(n, tuple(v), u) for n, v, u in json.loads(done.stdout)]
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    write_results("query_peers", measures, f"synthetic firings and chats, {SAE}, 10 bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
