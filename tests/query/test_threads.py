"""One handle may be asked from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from scopelake.query import point_reads
from scopelake.query.contexts import top_contexts
from scopelake.query.rank_contexts import Ranking


def test_answers_of_threads_are_not_mixed_up(built, monkeypatch):
    monkeypatch.setattr(point_reads, "_FOOTERS", 2)
    asked = [Ranking(built.sae(), f, k, by=by) for f in (0, 3) for by in ("max", "sum", "count")
             for k in (2, 7)]  # fmt: skip

    def answer(ranking):
        return top_contexts(built.connection, ranking, window=1).table

    expected = [answer(ranking) for ranking in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(answer, asked * 5))
    assert found == expected * 5
