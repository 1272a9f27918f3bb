"""The strict comparison of tensors with what is expected."""

import torch

from ssldet.states import few, infinite, misfits


def test_every_kind_of_misfit_is_named() -> None:
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros(5), "c": torch.zeros(7)}
    given = {"a": torch.zeros(3, 2), "c": torch.full((7,), torch.nan), "d": torch.full((1,), torch.inf)}
    wrong = ["b is missing", "d is unknown here", "a has shape [3, 2] instead of [2, 3]"]
    assert misfits(expected, given) == wrong
    assert misfits(expected, expected) == []
    assert infinite(given) == ["c is not finite", "d is not finite"]


def test_long_lists_are_cut() -> None:
    assert few([]) == ""
    assert few(["a", "b"], shown=2) == "a; b"
    assert few(["a", "b", "c", "d", "e"], shown=2) == "a; b; and 3 more"
