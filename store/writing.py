"""Who writes the firings of shards: this process, or processes beside it.

Where a GPU computes, its host has to feed it; a thread that writes takes the interpreter from the
thread that feeds. Processes do not. They are plain ones that read what is to be written from a pipe
and end with it, so none outlives the process that it writes for by more than what it has in hand.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, Final, Protocol
from weakref import finalize

import numpy as np
import numpy.typing as npt

from scopelake.errors import ScopelakeError, WriterLostError
from scopelake.store.context_codes import ContextCodes
from scopelake.store.memory import give_back_memory
from scopelake.store.receipts import Receipt
from scopelake.store.root import Root
from scopelake.store.running import Bounded, Running, Selects
from scopelake.store.writer import write_firings

PROCESS_BYTES: Final = 160_000_000
"""Of memory that a process takes which has nothing to write (measured)."""

_NICENESS: Final = 5
"""Of these processes: who feeds the device comes first."""


@dataclass(frozen=True)
class WriteJob:
    """A coder's firings of a shard, or of a piece of it, and where they go."""

    root: Root
    codes: ContextCodes
    sae: str
    corpus: str
    shard: int
    run: str
    bits: int
    kept: npt.NDArray[np.int64] | None
    scratch: Path

    def write(self, running: Selects) -> list[Receipt]:
        """Write them, as `write_firings` does."""
        return write_firings(
            self.root, self.codes.firings(), sae=self.sae, corpus=self.corpus, shard=self.shard,
            run=self.run, bits=self.bits, running=running, kept=self.kept, scratch=self.scratch,
        )  # fmt: skip


class Writing(Protocol):
    """Writes firings; several threads may ask at once."""

    @property
    def n_bytes(self) -> int:
        """Memory that it takes beside this process, when it has nothing to write."""

    def write(self, job: WriteJob, running: Running) -> list[Receipt]:
        """Write what a job says; `running` takes in what was selected."""

    def close(self) -> None:
        """End what was started for it; it may be used again."""


class Inside:
    """Writing in the thread that asks."""

    n_bytes = 0

    def write(self, job: WriteJob, running: Running) -> list[Receipt]:
        """Write what a job says."""
        return job.write(running)

    def close(self) -> None:
        """Do nothing."""


class Beside:
    """Writing in processes, each started when it is first needed.

    Args:
        n: how many at most.
    """

    def __init__(self, n: int) -> None:
        self._n, self.n_bytes = n, n * PROCESS_BYTES
        # Last in, first out: no more are started than write at once.
        self._free: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(n):
            self._free.put(None)
        self._started: list[_Process] = []
        finalize(self, _end, self._started)

    def write(self, job: WriteJob, running: Running) -> list[Receipt]:
        """Write what a job says, once a process is free.

        Raises:
            WriterLostError: the process ended before it had written.
        """
        asked = pickle.dumps((job, running.bounded(job.shard)), pickle.HIGHEST_PROTOCOL)
        process = self._free.get()
        try:
            if process is None:
                process = _Process()
                self._started.append(process)
            answer = process.ask(asked)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            status, process = self._lost(process), None
            raise WriterLostError(
                f"{job.sae} was to be written; the process that writes ended with status "
                f"{status}; see whether the machine had memory left, and give less as memory"
            ) from error
        except BaseException:  # half of an answer may be in the pipe
            self._lost(process)
            process = None
            raise
        finally:
            self._free.put(process)
        if isinstance(answer, BaseException):
            raise answer
        receipts, selected = answer
        running.selected(job.shard, selected)
        found: list[Receipt] = receipts
        return found

    def _lost(self, process: _Process | None) -> int | None:
        """End a process that is of no more use, and return its status."""
        if process is None:
            return None  # it could not be started
        self._started.remove(process)
        return process.end()

    def close(self) -> None:
        """End the processes, once what is being written is; nobody else may close it meanwhile."""
        for _ in range(self._n):
            self._free.get()
        _end(self._started)
        for _ in range(self._n):
            self._free.put(None)


class _Process:
    """One that writes, asked through pipes."""

    def __init__(self) -> None:
        # It imports what this process would, whatever folder it is in.
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "scopelake.store.writing"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={"MALLOC_ARENA_MAX": "2"} | os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for whoever asks
        )  # fmt: skip

    def ask(self, what: bytes) -> Any:  # noqa: ANN401
        """Return its answer to a pickle."""
        to, of = self._process.stdin, self._process.stdout
        assert to is not None
        assert of is not None
        to.write(what)
        to.flush()
        return pickle.load(of)  # noqa: S301 - from the process that was started here

    def end(self) -> int:
        """Tell it to end, wait for that, and return its status."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # it is gone
                pipe.close()
        return self._process.wait()


def _end(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()


def _answer(job: WriteJob, bounded: Bounded) -> object:
    try:
        return job.write(bounded), bounded.selected
    except Exception as error:  # noqa: BLE001 - raised where it was asked for
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301
        except Exception:  # noqa: BLE001 - some errors take other arguments than they keep
            return ScopelakeError(f"{type(error).__name__}: {error}")
        return error


def serve(of: IO[bytes], to: IO[bytes]) -> None:
    """Write what is asked for, until there is nothing to be read any more."""
    while True:
        try:
            # Nothing of the last job is held while the next one comes.
            answer = _answer(*pickle.load(of))  # noqa: S301 - from the process that started this
        except (EOFError, pickle.UnpicklingError):
            return  # whoever asked is gone, or was while it asked
        pickle.dump(answer, to, protocol=pickle.HIGHEST_PROTOCOL)
        to.flush()
        del answer
        give_back_memory()


def main() -> None:
    """Serve what started this process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints is no answer
    os.nice(_NICENESS)
    with suppress(BrokenPipeError):  # whoever asked is gone
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
