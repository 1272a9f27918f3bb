"""What one process answers, and ranks that differ."""

import pytest
import torch

from ssldet import ranks
from ssldet.errors import DistributedError


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks.rank(), ranks.world(), ranks.connected()) == (0, 1, False)
    assert ranks.gather_objects({"a": 1}) == [{"a": 1}]
    assert ranks.any_rank(torch.tensor([0.0, 1.0])) == [False, True]
    assert torch.equal(ranks.reduce_mean(torch.ones(2)), torch.ones(2))
    ranks.require_agreement({"seed": "1"})
    assert ranks.launched() is None
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "5")
    assert ranks.launched() == (4, 2)
    assert ranks.rank() == 5


def test_ranks_that_differ_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gather_objects", lambda mine: [mine, {**mine, "data set": "y"}])
    with pytest.raises(DistributedError, match="rank 1 has another data set than rank 0 \\(y instead of x\\)"):
        ranks.require_agreement({"configuration": "c", "data set": "x"})
