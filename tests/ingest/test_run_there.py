"""What becomes of a shard whose result changes its state while it is looked at."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scopelake.ingest import run_there
from scopelake.ingest.stages import Stages

SHARD = object()


class Fickle:
    """A result whose state is another each time that it is asked for."""

    def __init__(self, states):
        self._states = list(states)

    @property
    def status(self):
        return self._states.pop(0) if len(self._states) > 1 else self._states[0]

    def done(self):
        return self.status == "finished"

    def result(self):
        return SimpleNamespace(seconds={}, tokens=1, firings=1, shard=SHARD)


@pytest.mark.parametrize(
    "states",
    [
        ["finished"],
        ["pending", "finished"],
        ["finished", "lost", "pending", "finished"],
        ["lost", "finished", "pending", "finished"],
        ["pending", "lost", "lost", "finished", "lost", "finished"],
    ],
)
def test_a_shard_is_committed_whatever_its_result_goes_through(monkeypatch, states):
    monkeypatch.setattr(run_there, "_await", lambda futures: None)
    waiting, committed, back = [SHARD], [], []
    cluster = SimpleNamespace(
        n_workers=lambda: 1, check_workers=lambda: None, wait_for_scheduler=lambda: None,
        submit=lambda *given: Fickle(states), everywhere=lambda *a, **k: None,
        cancel=lambda futures: None,
    )  # fmt: skip

    def commit(made):
        committed.extend(files.shard for files in made)
        return None, []

    work = SimpleNamespace(
        next=lambda: waiting.pop() if waiting else None, is_stopping=lambda: False,
        commit=commit, on_batch=lambda tokens, firings: None, stages=Stages(),
        ledger=SimpleNamespace(done=lambda n: None, back=back.append),
    )  # fmt: skip
    run_there.run_there(cluster, SimpleNamespace(key="k"), work)
    assert committed == [SHARD]
    assert back == []
