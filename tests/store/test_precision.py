"""Rounding against exact arithmetic in integers of Python."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopelake.errors import InvalidArgumentError
from scopelake.store.precision import relative_error, round_mantissa

normal = st.floats(min_value=2.0**-126, max_value=2.0**126, width=32)


def exact(value: float, bits: int) -> Fraction:
    number = Fraction(value)
    exponent = 0
    while number / Fraction(2) ** exponent >= 2:
        exponent += 1
    while number / Fraction(2) ** exponent < 1:
        exponent -= 1
    unit = Fraction(2) ** (exponent - bits)
    return round(number / unit) * unit  # Python rounds fractions half to even


@settings(max_examples=80, deadline=None)
@given(normal, st.integers(1, 23), st.sampled_from([1, -1]))
def test_rounding_is_exact_and_within_its_bound(value, bits, sign):
    found = round_mantissa(np.array([sign * value], np.float32), bits)[0]
    assert Fraction(float(found)) == sign * exact(value, bits)
    assert abs(float(found) - sign * value) <= relative_error(bits) * value


def test_ties_go_to_even_and_special_values_stay():
    ties = np.array([1 + 2**-11, 1 + 3 * 2**-11, np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    found = round_mantissa(ties, 10)
    assert found[:4].tolist() == [1.0, 1 + 2**-9, np.inf, -np.inf]
    assert np.isnan(found[4])
    assert np.signbit(found[5:]).tolist() == [False, True]
    assert round_mantissa(np.array([3.4e38], np.float32), 1)[0] == np.inf


def test_all_bits_change_nothing_and_input_is_kept():
    values = np.random.default_rng(0).normal(size=63).astype(np.float32)
    before = values.copy()
    assert (round_mantissa(values, 23) == values).all()
    round_mantissa(values, 7)
    assert (values == before).all()
    assert relative_error(23) == 0.0
    assert relative_error(10) == 2**-11


@pytest.mark.parametrize("bits", [0, 24, -1])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(InvalidArgumentError, match="1 to 23"):
        round_mantissa(np.zeros(1, np.float32), bits)
