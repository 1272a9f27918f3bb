"""From logits to segmentations: nothing of the batch remains, stuff stays joined, masks are where they were drawn.

The two faults of the authors' post-processing are built again here, to show that they would be noticed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from downstream.segmentation import masks_of, segmentation_of, without_padding

STUFF, THING, OTHER = 7, 2, 9


def winners(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].softmax(0).argmax(0)


def faulty(logits: Tensor, labels: list[int], size: tuple[int, int], stuff: set[int]) -> dict[int, int]:
    """Drop and recompute as the authors do: in the second round, what was joined counts as empty or falls apart."""
    winner = winners(logits, size)
    for number, label in enumerate(labels):
        if label in stuff:
            winner[winner == number] = labels.index(label)
    while True:
        areas = torch.bincount(winner.flatten(), minlength=len(labels))
        if (areas > 4).all():
            break
        logits, labels = logits[areas > 4], [label for label, area in zip(labels, areas, strict=True) if area > 4]
        winner = winners(logits, size)
    return {label: int((winner == number).sum()) for number, label in enumerate(labels)}


def areas_of(logits: Tensor, labels: list[int], size: tuple[int, int], stuff: set[int]) -> dict[int, int]:
    found = segmentation_of(logits, torch.tensor(labels), size, stuff=stuff)
    return {int(label): int((found.segments == n).sum()) for n, label in enumerate(found.labels, start=1)}


def contest() -> Tensor:
    """Two queries of one stuff, 28 pixels each, and a thing of 8 that comes second on the right."""
    logits = torch.zeros(3, 8, 8)
    logits[0, :, :4], logits[1, :, 4:] = 5, 5
    logits[2, 4:] = 1
    logits[2, :, 4:] = 2
    logits[2, 6:, 2:6] = 9
    return logits


def test_joined_stuff_stays_joined() -> None:
    labels = [STUFF, STUFF, THING]
    assert areas_of(contest(), labels, (8, 8), {STUFF}) == {STUFF: 56, THING: 8}
    assert faulty(contest(), labels, (8, 8), {STUFF}) == {STUFF: 28, THING: 36}


def test_stuff_is_joined_again_once_something_small_is_gone() -> None:
    logits = torch.cat([contest(), torch.zeros(1, 8, 8)])
    logits[3, 0, :4] = 20
    assert areas_of(logits, [STUFF, STUFF, THING, OTHER], (8, 8), {STUFF}) == {STUFF: 56, THING: 8}
    logits[3, 0, :5] = 20
    assert areas_of(logits, [STUFF, STUFF, THING, OTHER], (8, 8), {STUFF}) == {STUFF: 51, THING: 8, OTHER: 5}


def test_parts_of_stuff_that_are_small_alone_count_together() -> None:
    logits = torch.zeros(3, 8, 8)
    logits[0, 0, :3], logits[1, 7, :3], logits[2] = 9, 9, 5
    assert areas_of(logits, [STUFF, STUFF, THING], (8, 8), {STUFF}) == {STUFF: 6, THING: 58}
    assert areas_of(logits, [THING, THING, STUFF], (8, 8), {STUFF}) == {STUFF: 64}


def test_things_of_one_class_stay_apart() -> None:
    found = segmentation_of(contest(), torch.tensor([THING] * 3), (8, 8), stuff={STUFF})
    assert found.labels.tolist() == [THING] * 3
    assert found.segments.unique().tolist() == [1, 2, 3]


def test_without_a_query_everything_is_void() -> None:
    for logits in (torch.zeros(0, 3, 4), torch.zeros(1, 1, 1)):
        found = segmentation_of(logits, torch.zeros(len(logits), dtype=torch.int64), (2, 2), stuff=())
        assert found.segments.tolist() == [[0, 0], [0, 0]]
        assert len(found.labels) == 0


def test_the_batch_has_no_influence() -> None:
    """Three canvases around one image give one answer; resizing a canvas as a whole, as the authors do, does not."""
    alone = torch.randn(4, 13, 19)
    size, disk, labels = (52, 76), (90, 131), torch.tensor([STUFF, THING, THING, OTHER])
    expected = segmentation_of(alone, labels, disk, stuff={STUFF})
    for height, width in ((52, 76), (80, 76), (83, 101)):
        padded = torch.full((4, -(-height // 4), -(-width // 4)), 50.0)
        padded[1] = -50
        padded[:, :13, :19] = alone
        cut = without_padding(padded, size, (height, width))
        assert torch.equal(cut, alone)
        found = segmentation_of(cut, labels, disk, stuff={STUFF})
        assert torch.equal(found.segments, expected.segments)
        assert torch.equal(masks_of(cut, disk), masks_of(alone, disk))
    theirs = F.interpolate(padded[None], size=disk, mode="bilinear", align_corners=False)[0].argmax(0)
    assert (theirs != winners(alone, disk)).float().mean() > 0.3


def test_sizes_that_no_stride_divides_are_rounded_up_as_layers_do() -> None:
    padded = torch.zeros(1, 26, 34)
    assert without_padding(padded, (50, 67), (101, 133)).shape == (1, 13, 17)
    assert without_padding(padded, (101, 133), (101, 133)).shape == (1, 26, 34)


def test_masks_lie_where_they_were_drawn_and_may_overlap() -> None:
    logits = torch.full((2, 10, 10), -4.0)
    logits[0, 2:8, 2:8], logits[1, 4:10, 4:10] = 4, 4
    masks = masks_of(logits, (40, 50))
    assert masks.shape == (2, 40, 50)
    assert abs(masks[0].sum() - 24 * 30) < 4 * 54
    assert masks[0, 9:31, 12:38].all()
    assert (masks[0] & masks[1]).any()
