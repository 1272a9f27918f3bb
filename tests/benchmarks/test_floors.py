"""Operations and bytes are counted, and said beside what a product or memory would need for as many."""

import pytest
import torch

from benchmarks.timing import floors
from benchmarks.timing.clock import compared


def test_operations_are_counted() -> None:
    weights = torch.randn(5, 7, requires_grad=True)
    given = torch.randn(3, 5)
    assert floors.flops_of(lambda: (given @ weights).sum().backward()) == 2 * 2 * 3 * 5 * 7


def test_a_row_says_which_share_of_its_time_is_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "_product", lambda: 4e9)
    monkeypatch.setattr(floors, "_memory", lambda: 10e9)
    row = compared("work", "the plain way", [(2.0, 3.0)], "a note")
    product = floors.beside_a_product(row, 6 * 10**9)
    assert product.note == (
        "a note; 6 GFLOP at 75% of the 4 GFLOP/s of a matrix product, which would need 1.50 of the 2.00 s"
    )
    moved = floors.beside_memory(compared("work", "the plain way", [(0.2, 0.3)]), 10**9)
    assert moved.note == (
        "1000 MB read and written, at 50% of the 10.0 GB/s of a tensor scaled in place, which would need 100 of the "
        "200 ms"
    )
    assert (moved.to_json()["bytes"], row.to_json()["bytes"]) == (10**9, 0)
