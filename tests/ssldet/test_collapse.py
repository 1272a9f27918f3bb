"""Numbers that fall when the vectors of all images become the same."""

import math

import pytest
import torch

from ssldet.chance import generator
from ssldet.collapse import effective_rank, spread

ONE = torch.tensor([[1.0, 2.0, 3.0]])
MANY = torch.randn(2000, 16, generator=generator("collapse"))


def test_vectors_of_one_direction_have_collapsed() -> None:
    same = torch.cat([ONE, 2 * ONE, 5 * ONE])
    assert float(spread(same)) == pytest.approx(0, abs=1e-6)
    assert float(effective_rank(same)) == pytest.approx(1, abs=1e-4)


def test_vectors_of_all_directions_have_not() -> None:
    assert float(spread(MANY)) == pytest.approx(1, abs=0.02)
    assert float(effective_rank(MANY)) == pytest.approx(16, abs=0.1)


def test_the_effective_rank_is_that_of_the_paper() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    left, right = (torch.linalg.qr(torch.randn(size, 4, generator=generator(size)))[0] for size in (9, 5))
    shares = (0.5, 0.25, 0.125, 0.125)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert float(effective_rank(left * values @ right.T)) == pytest.approx(expected, abs=1e-4)


def test_it_counts_directions_and_not_vectors() -> None:
    few = MANY[:, :3] @ torch.linalg.qr(torch.randn(16, 3, generator=generator(2)))[0].T
    assert float(effective_rank(few)) == pytest.approx(3, abs=0.02)
    assert float(effective_rank(torch.zeros(7, 5))) == pytest.approx(1, abs=1e-3)
