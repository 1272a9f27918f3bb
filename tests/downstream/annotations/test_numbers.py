"""Numbers of foreign files."""

import pytest

from downstream.annotations.numbers import finite_number, number_in


@pytest.mark.parametrize("value", [True, "3", None, float("nan"), float("-inf"), 10**400, [1]])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert finite_number(value) is None


@pytest.mark.parametrize("text", ["", "wide", "nan", "1e999", "-inf", "3,5"])
def test_text_that_is_no_finite_number_is_none(text: str) -> None:
    assert number_in(text) is None


def test_numbers_are_floats() -> None:
    assert (finite_number(3), finite_number(-0.5), number_in(" 7.25 ")) == (3.0, -0.5, 7.25)
