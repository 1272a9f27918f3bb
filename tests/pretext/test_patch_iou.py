import pytest
import torch

from pretext.patch_iou import PatchIoU, best_constant_box, template_matching
from ssldet.boxes import cxcywh_to_xyxy, pairwise_iou, to_absolute
from ssldet.errors import DataError, DivergedError
from ssldet.types import Batch, Detections, Targets

SIZE = (40, 60)


def batch_of(*boxes_cxcywh, canvas=(48, 64)):
    count = len(boxes_cxcywh)
    return Batch(
        images=torch.zeros(count, 3, *canvas, dtype=torch.uint8),
        padding=torch.zeros(count, *canvas, dtype=torch.bool),
        sizes=torch.tensor([canvas] * count),
        targets=[Targets(boxes=boxes, labels=torch.arange(len(boxes))) for boxes in boxes_cxcywh],
        keys=[str(number) for number in range(count)],
        original_sizes=torch.tensor([SIZE] * count),
    )


def answers(boxes_cxcywh, order=None):
    order = torch.arange(len(boxes_cxcywh)) if order is None else torch.tensor(order)
    boxes = to_absolute(boxes_cxcywh, SIZE)[order]
    return Detections(boxes=boxes, scores=torch.ones(len(boxes)), labels=order)


def random_boxes(count, generator, side=(0.2, 0.6)):
    sides = side[0] + (side[1] - side[0]) * torch.rand(count, 2, generator=generator)
    centres = sides / 2 + (1 - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([centres, sides], dim=1)


def test_perfect_answers_in_any_order_score_one(generator):
    boxes = random_boxes(3, generator)
    evaluator = PatchIoU()
    evaluator.update([answers(boxes, order=[2, 0, 1])], batch_of(boxes))
    results = evaluator.results()
    assert results["patch_iou"] == pytest.approx(1, abs=1e-5)
    assert results["patch_found"] == 1
    assert results["patch_iou_constant"] < 0.9


def test_a_constant_answer_never_beats_the_best_constant(generator):
    boxes, other = random_boxes(6, generator), random_boxes(4, generator)
    for said in random_boxes(6, generator):
        evaluator = PatchIoU()
        evaluator.update([answers(said.expand(6, 4)), answers(said.expand(4, 4))], batch_of(boxes, other))
        results = evaluator.results()
        assert results["patch_iou"] <= results["patch_iou_constant"] + 1e-3


def test_the_best_constant_box_is_as_good_as_a_long_random_search(generator):
    truth = random_boxes(200, generator)
    box, score = best_constant_box(truth)
    rivals = random_boxes(5000, generator, side=(0.05, 1.0))
    best = pairwise_iou(cxcywh_to_xyxy(rivals), cxcywh_to_xyxy(truth)).mean(1).max()
    assert score >= float(best)
    assert float(pairwise_iou(cxcywh_to_xyxy(box[None]), cxcywh_to_xyxy(truth)).mean()) == pytest.approx(score)


def test_the_best_constant_box_of_one_box_is_that_box():
    truth = torch.tensor([[0.31, 0.62, 0.23, 0.41]])
    box, score = best_constant_box(truth)
    assert score > 0.97
    assert torch.allclose(box, truth[0], atol=0.01)


def test_what_is_not_finite_is_not_scored(generator):
    boxes = random_boxes(2, generator)
    with pytest.raises(DivergedError, match="not finite"):
        PatchIoU().update([answers(boxes * torch.nan)], batch_of(boxes))


def test_nothing_to_measure_is_an_error():
    with pytest.raises(DataError, match="at least one"):
        PatchIoU().results()
    assert template_matching([]) == {}


def test_template_matching_finds_what_its_features_tell_apart(generator):
    """Each cell has a feature of its own, so the mean over a box tells the box."""
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.5, 0.25, 0.75]])
    cells = torch.eye(64).view(1, 64, 8, 8)
    patches = torch.zeros(1, 2, 64)
    patches[0, 0] = cells[0, :, 0:4, 0:4].mean(dim=(1, 2))
    patches[0, 1] = cells[0, :, 1:7, 5:7].mean(dim=(1, 2))
    found = template_matching([(batch_of(boxes, canvas=(64, 64)), cells, patches)])
    assert found["template_iou"] == pytest.approx(1, abs=1e-5)
    blind = template_matching([(batch_of(boxes, canvas=(64, 64)), torch.ones_like(cells), torch.ones(1, 2, 64))])
    assert blind["template_iou"] < blind["constant_iou"]
