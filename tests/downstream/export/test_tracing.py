"""What a trace of any size computes is what a run computes."""

import itertools

from timm.layers import padding

from downstream.export.tracing import same_padding, traceable_padding


def test_padding_in_whole_numbers_is_timms() -> None:
    for side, kernel, stride, dilation in itertools.product(range(1, 40), (1, 2, 3, 5), (1, 2, 3), (1, 2)):
        expected = padding.get_same_padding(side, kernel, stride, dilation)
        assert same_padding(side, kernel, stride, dilation) == expected, (side, kernel, stride, dilation)


def test_timm_has_its_own_padding_back() -> None:
    original = padding.get_same_padding
    with traceable_padding():
        assert padding.get_same_padding is same_padding
    assert padding.get_same_padding is original
