"""The plain way to match and compare sets of queries: the same loss as the fast one."""

import torch

from benchmarks.timing.sets import NO_OBJECT, WEIGHTS, drawn, measure_sets, plain_loss
from ssldet.losses.set_prediction import set_prediction


def test_the_loss_is_that_of_our_criterion() -> None:
    torch.manual_seed(0)
    predictions, wanted = drawn(3, 4, 12, 5)
    ours = set_prediction(WEIGHTS, no_object_weight=NO_OBJECT)(predictions, wanted).total
    torch.testing.assert_close(plain_loss(predictions, wanted), ours, rtol=1e-5, atol=1e-5)


def test_a_row_is_measured_for_each_amount_and_for_attention_alone_and_whole() -> None:
    rows = list(measure_sets(2, [(40, 10)]))
    assert [row.work.partition(":")[0] for row in rows] == [
        "matching and loss",
        "attention within groups",
        "the same with its projections",
    ]
    assert all(row.ratio > 1 for row in rows)
