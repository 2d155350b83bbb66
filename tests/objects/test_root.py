"""What an object root hands to Arrow."""

import subprocess
import sys

import pyarrow as pa
import pytest

from scopelake.store.object_root import ObjectRoot, arrow_copy

READ_AND_END = """
import sys
import pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq
from scopelake.store.object_root import arrow_copy
sink = pa.BufferOutputStream()
pq.write_table(pa.table({"a": range(500), "b": ["x"] * 500}), sink)
data = sink.getvalue().to_pybytes()
parquet = ds.ParquetFileFormat()
for _ in range(20):
    fragment = parquet.make_fragment(pa.BufferReader(arrow_copy(bytes(bytearray(data)))))
    assert fragment.to_table(filter=ds.field("a") > 3).num_rows == 496
"""


@pytest.mark.parametrize("n_bytes", [0, 1, 1023, 1 << 20])
def test_arrow_copies_hold_nothing_of_pythons(n_bytes):
    data = bytearray(i % 251 for i in range(n_bytes))
    buffer = arrow_copy(bytes(data))
    assert buffer.to_pybytes() == data
    holds = arrow_copy(data)
    data.append(1)  # what something holds cannot grow
    assert holds.size == n_bytes
    held = pa.py_buffer(data)
    with pytest.raises(BufferError):
        data.append(1)
    assert held.size == n_bytes + 1


def test_an_object_that_is_open_is_a_copy(url):
    root = ObjectRoot.at(url)
    root.put_new("a", b"bytes of an object")
    assert root.checksum("a").startswith("xxh3:")  # which keeps the bytes of a small one
    with root.open("a") as file:
        assert file.read() == b"bytes of an object"


@pytest.mark.slow
def test_processes_that_read_and_end_do_so_by_themselves():
    """With memory that is Python's, 1 of 9 aborted when 6 ran at once on 2 cores."""
    for _ in range(4):
        running = [subprocess.Popen([sys.executable, "-c", READ_AND_END]) for _ in range(6)]
        assert [process.wait() for process in running] == [0] * 6
