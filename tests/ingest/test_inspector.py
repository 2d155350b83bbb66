"""An inspection beside the lake: corpora of other precision, and connections that are closed."""

import math

import pytest

import scopelake
from scopelake import tiny
from scopelake.errors import CorpusNotFoundError
from scopelake.ingest.sources import PromptSource
from scopelake.query.connect import Connection

SAE = f"{tiny.CODERS_REPO}/resid_post_all/layer_3_width_1024_l0_small"
TEXT = "import os\n\n\nclass Lake:\n    def depth(self):\n        return os.getenv('DEPTH')\n"


def to_bits(value, bits):
    """A number above 0 rounded to so many bits after its leading one; ties to even, in Python."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, bits + 1)), exponent - bits - 1)


@pytest.mark.parametrize("bits", [4, 23])
def test_a_prompt_is_compared_as_its_corpus_is_stored(tmp_path, bits):
    (tmp_path / "a.txt").write_text(TEXT * 10)
    lake = scopelake.create(tmp_path / "lake")
    lake.add_corpus("code", tmp_path / "a.txt", tokenizer=tiny.MODEL_NAME, context_length=64)
    lake.ingest("code", model=tiny.MODEL_NAME, saes=SAE, device="cpu", activation_bits=bits)
    found = lake.inspect(
        TEXT, model=tiny.MODEL_NAME, saes=SAE, device="cpu", k=None, keep=False
    ).firings
    there = {}
    for row in lake.sql("SELECT feature, activation FROM codes WHERE kind <> 'bos'").to_pylist():
        there.setdefault(row["feature"], []).append(row["activation"])
    n_as_given = n_exact = 0
    for row in found.to_pylist():
        if row["percentile"] is None:
            continue
        known, given = there[row["feature"]], row["activation"]
        # The prompt's own rounding, to 10 bits, left out up to half of its last bit.
        half = math.ldexp(0.5, math.frexp(given)[1] - 1 - 10)
        ends = [to_bits(given - half, bits), to_bits(given + half, bits)]
        low, high = (100 * sum(a < end for a in known) / len(known) for end in ends)
        assert row["percentile"] == pytest.approx((low + high) / 2)
        assert row["percentile_error"] == pytest.approx((high - low) / 2)
        n_exact += row["percentile_error"] == 0
        n_as_given += sum(a < given for a in known) != sum(a < ends[0] for a in known)
    assert n_exact or bits == 23  # where each value that it may have had differs
    assert n_as_given  # rows that a comparison of unlike bits would get wrong


def test_no_connection_is_left_open(tmp_path, monkeypatch):
    lake = scopelake.create(tmp_path / "lake")
    inspector = lake.inspector(model=tiny.MODEL_NAME, saes=SAE, device="cpu")
    opened, closed = [], []
    begin, close = Connection.__init__, Connection.close

    def opening(self, *args):
        opened.append(self)
        begin(self, *args)

    def closing(self):
        closed.append(self)
        close(self)

    monkeypatch.setattr(Connection, "__init__", opening)
    monkeypatch.setattr(Connection, "close", closing)
    for keep in (True, False):
        inspector.inspect("x", keep=keep)
    assert len(opened) >= 4
    assert {id(c) for c in closed} == {id(c) for c in opened}
    with pytest.raises(CorpusNotFoundError):
        inspector.inspect("x", against="nowhere")
    assert len(closed) == len(opened)


def test_statistics_that_a_prompt_did_without_are_made_by_the_next_ingest(tmp_path):
    lake = scopelake.create(tmp_path / "lake")
    reader = lake.inspector(model=tiny.MODEL_NAME, saes=SAE, device="cpu")._prompts
    done = reader.ingest(lake._store, PromptSource(TEXT), describe=False)
    lake.refresh()
    before = lake.sql("SELECT * FROM codes ORDER BY ALL")
    assert before.num_rows > 100
    assert lake.sql("SELECT * FROM features").num_rows == 0
    lake.ingest(done.corpus, model=tiny.MODEL_NAME, saes=SAE, device="cpu")
    features = lake.sql("SELECT feature, top_tokens FROM features ORDER BY feature")
    assert features["top_tokens"].to_pylist() == done.promoted[SAE].to_pylist()
    assert lake.sql("SELECT * FROM codes ORDER BY ALL").equals(before)
