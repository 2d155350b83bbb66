"""Results on their way to the host: none is lost or overwritten, however late copies are made."""

import pytest
import torch

from scopelake.kernels.to_host import HostRing


class LateCopier:
    """Copies only when it is waited for, as the slowest of devices would."""

    def __init__(self):
        self.n_buffers, self.n_waits = 0, 0

    def buffer(self, n_bytes):
        self.n_buffers += 1
        return torch.full((n_bytes,), 0xEE, dtype=torch.uint8)

    def start(self, copies):
        def wait():
            self.n_waits += 1
            for to, of in copies:
                to.copy_(of)

        return wait


def batch(seed):
    """Tensors as an encoding gives them; the third has none or many elements."""
    draw = torch.Generator().manual_seed(seed)
    n = seed % 3 * 57
    return [
        torch.arange(5 + seed),
        torch.randint(1000, (n,), generator=draw, dtype=torch.int32),
        torch.randn(n, generator=draw),
        torch.randn(3, 7, generator=draw).bfloat16(),
    ]


def same(found, expected):
    return all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("behind", [0, 1, 2, 7])
def test_all_arrive_whole_however_far_behind_they_are_taken(slots, behind):
    ring, waiting = HostRing(LateCopier(), slots), []
    for seed in range(20):
        waiting.append((ring.send(batch(seed)), seed))
        if len(waiting) > behind:
            arrival, sent = waiting.pop(0)
            assert same(arrival.take(), batch(sent))
    for arrival, sent in waiting:
        assert same(arrival.take(), batch(sent))


def test_what_was_taken_stays_when_its_buffer_is_used_again():
    ring = HostRing(LateCopier(), 1)
    first = ring.send(batch(2)).take()
    ring.send(batch(5)).take()
    assert same(first, batch(2))


def test_nobody_waits_while_the_ring_has_room():
    copier = LateCopier()
    ring = HostRing(copier, 2)
    arrivals = [ring.send(batch(seed)) for seed in range(2)]
    assert copier.n_waits == 0
    arrivals.append(ring.send(batch(2)))
    assert copier.n_waits == 1
    assert [same(a.take(), batch(s)) for s, a in enumerate(arrivals)] == [True] * 3
    assert copier.n_waits == 3


def test_buffers_are_kept():
    copier = LateCopier()
    ring = HostRing(copier, 2)
    for _ in range(9):
        ring.send(batch(2)).take()
    assert copier.n_buffers == 2


def test_what_is_on_the_host_stays_where_it_is():
    tensors = batch(2)
    found = HostRing.of(torch.device("cpu")).send(tensors).take()
    assert all(a is b for a, b in zip(found, tensors, strict=True))
