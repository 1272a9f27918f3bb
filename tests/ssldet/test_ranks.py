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
    assert ranks.totals([7.0, 0.5], torch.device("cpu")) == [7, 0.5]
    assert ranks.largest([7, 3], torch.device("cpu")) == [7, 3]
    ranks.require_agreement({"seed": "1"})
    assert ranks.launched() is None
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "5")
    assert ranks.launched() == (4, 2)
    assert ranks.rank() == 5
    assert torch.equal(ranks.share(torch.arange(7)), torch.arange(7)), "no group yet, so there is nothing to share"


def test_a_connected_rank_takes_its_share_and_totals_count_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(5 + 6))
    assert ranks.share(torch.arange(7)).tolist() == [1, 4]
    assert ranks.totals([4.0, 1.0], torch.device("cpu")) == [15, 12]


def test_ranks_that_differ_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gather_objects", lambda mine: [mine, {**mine, "data set": "y"}])
    with pytest.raises(DistributedError, match="rank 1 has another data set than rank 0 \\(y instead of x\\)"):
        ranks.require_agreement({"configuration": "c", "data set": "x"})
