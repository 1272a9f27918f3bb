"""Cells from which queries begin: the best ones, and the best that lie apart."""

import pytest
import torch
from torchvision.ops import nms

from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou
from ssldet.nn.proposals import ROUNDS, best_cells, distinct_cells


@pytest.mark.parametrize("overlap", [0.1, 0.35, 0.5, 0.9])
def test_cells_are_those_that_suppression_one_by_one_keeps_then_the_best_of_the_others(overlap: float) -> None:
    torch.manual_seed(0)
    scores, boxes = torch.rand(12, 60), torch.rand(12, 60, 4) * torch.tensor([1, 1, 0.5, 0.5])
    found = distinct_cells(scores, boxes, 40, overlap)
    assert found.shape == (12, 40)
    for row, own, some in zip(found, scores, boxes, strict=True):
        kept = nms(cxcywh_to_xyxy(some), own, overlap)
        others = [cell for cell in own.argsort(descending=True).tolist() if cell not in kept.tolist()]
        assert row.tolist() == [*kept.tolist(), *others][:40]


def test_an_overlap_of_one_passes_nothing_over() -> None:
    torch.manual_seed(0)
    scores, boxes = torch.rand(2, 30), torch.rand(2, 30, 4)
    assert torch.equal(distinct_cells(scores, boxes, 10, 1.0), best_cells(scores, 10))
    # Two equal boxes overlap by one and no more.
    assert torch.equal(distinct_cells(scores, boxes[:, :1].expand(-1, 30, -1), 10, 1.0), best_cells(scores, 10))


def test_cells_of_one_object_count_as_one_as_long_as_there_are_others() -> None:
    # Five cells on one object, two on a second, one on a third, from better to worse.
    centres = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.5, 0.5, 0.8])
    boxes = torch.stack([centres, torch.full_like(centres, 0.5), *[torch.full_like(centres, 0.2)] * 2], dim=-1)
    scores = torch.arange(8, 0, -1.0)
    assert best_cells(scores[None], 3).tolist() == [[0, 1, 2]]
    assert distinct_cells(scores[None], boxes[None], 3, 0.5).tolist() == [[0, 5, 7]]
    assert distinct_cells(scores[None], boxes[None], 5, 0.5).tolist() == [[0, 5, 7, 1, 2]]


def test_an_image_of_few_cells_repeats_the_last() -> None:
    boxes = torch.tensor([[[0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]]])
    assert distinct_cells(torch.tensor([[1.0, 2.0]]), boxes, 5, 0.5).tolist() == [[1, 0, 1, 1, 1]]


def test_no_two_kept_boxes_overlap_however_long_a_chain_is() -> None:
    # Each box overlaps the next: of a chain, every second one stays.
    length = 4 * ROUNDS
    boxes = torch.full((1, length, 4), 0.5)
    boxes[..., 0], boxes[..., 2] = torch.arange(length) / length, 1.5 / length
    boxes[..., 3] = 0.1
    scores = -torch.arange(float(length))[None]
    corners = cxcywh_to_xyxy(boxes)
    assert pairwise_iou(corners, corners)[0, 0, 1] > 0.1
    found = distinct_cells(scores, boxes, length, 0.1)[0].tolist()
    exact = list(range(0, length, 2))
    decided = exact[: (ROUNDS + 1) // 2]
    assert found[: len(decided)] == decided
    assert sorted(found) == list(range(length))


def test_boxes_get_no_gradient_through_the_choice() -> None:
    boxes = torch.rand(1, 6, 4, requires_grad=True)
    assert not distinct_cells(torch.rand(1, 6, requires_grad=True), boxes, 3, 0.5).requires_grad
