"""Tiles: they cover an image, each is answered like an image, and what two of them show is found once."""

import math
import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from downstream.annotations.coco import open_coco
from downstream.annotations.shapes import write_shapes
from downstream.detection import Detection
from downstream.one_shot import OneShot
from downstream.panoptic import Panoptic
from downstream.tiled_answers import TILES_AT_ONCE, answer_tiled, merge
from downstream.tiles import Place, TiledEvaluation, Tiles, TrainingTiles, most_in_a_tile, places_of
from ssldet.boxes import to_absolute, to_normalised
from ssldet.data.collate import collate
from ssldet.data.geometry import EvaluationSize
from ssldet.data.images import ImageRules
from ssldet.data.problems import same, without_pixels
from ssldet.engine.evaluate import unpadded
from ssldet.errors import ConfigError
from ssldet.recipe import check, from_document, override, to_document
from ssldet.types import Batch, Detections, Sample, Targets
from tests.models import TINY_DETR

SIZING = EvaluationSize("detr", 64, 96)
TASK = Detection(scales=(48,), max_size=80, eval_scale=48, crop=0.0)


def photo(size: tuple[int, int], corners: list[list[float]] | None = None, seed: int = 0) -> Sample:
    """An image of noise with objects at the given corners, in pixels."""
    pixels = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    boxes = to_normalised(torch.tensor(corners or []).reshape(-1, 4), size)
    targets = Targets(boxes=boxes, labels=torch.arange(len(boxes)) % 2)
    return Sample(image=pixels, targets=targets, key="photo", original_size=size)


def perfect(batch: Batch) -> list[Detections]:
    """Find exactly the visible part of every object, without ever seeing more than one tile."""
    found = []
    for targets, size in zip(batch.targets, batch.original_sizes.tolist(), strict=True):
        boxes = to_absolute(targets.boxes, (size[0], size[1]))
        found.append(Detections(boxes=boxes, scores=torch.full((len(boxes),), 0.5), labels=targets.labels))
    return found


def tiled(sample: Sample, side: int = 100, overlap: float = 0.3, *, with_whole: bool = False) -> Batch:
    views = TiledEvaluation(side=side, overlap=overlap, with_whole=with_whole, sizing=SIZING)
    return collate([views(sample, torch.Generator())])


def found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    numbers = torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), scores=torch.tensor(scores), labels=numbers
    )


@pytest.mark.parametrize(("size", "side", "overlap"), [((97, 301), 50, 0.2), ((50, 51), 50, 0.0), ((640, 90), 99, 0.9)])
def test_tiles_cover_the_image_with_the_overlap_that_was_asked_for(
    size: tuple[int, int], side: int, overlap: float
) -> None:
    places, covered = places_of(size, side, overlap), torch.zeros(size)
    for top, left, height, width in places:
        assert (height, width) == (min(side, size[0]), min(side, size[1]))
        covered[top : top + height, left : left + width] += 1
    assert covered.min() == 1
    for axis, length in enumerate(size):
        starts = sorted({place[axis] for place in places})
        assert starts[-1] == max(0, length - side)
        assert all(second - first <= side * (1 - overlap) + 1 for first, second in pairwise(starts))
        fewest = math.ceil(max(0, length - side) / (side * (1 - overlap))) + 1
        assert len(starts) == fewest


def test_an_image_no_larger_than_a_tile_has_none() -> None:
    for size in ((100, 100), (30, 100)):
        problem = tiled(photo(size)).problem
        assert isinstance(problem, Tiles)
        assert problem.original == [None]
        assert problem.layout[0].places == ()
    assert len(tiled(photo((30, 101))).problem.layout[0].places) == 2


def test_every_object_is_found_once_where_it_is() -> None:
    """Objects are smaller than the overlap, so that each is whole in some tile; many are cut in another one."""
    generator = torch.Generator().manual_seed(1)
    corners = []
    for row in range(8):
        for column in range(9):
            left, top = 30 * column + 9 * float(torch.rand((), generator=generator)), 30 * row + 3.0
            corners.append([left, top, left + 20, top + 25])
    sample = photo((250, 310), corners)
    (answer,) = answer_tiled(tiled(sample), perfect)
    assert len(answer) == len(corners)
    distances = (answer.boxes[:, None] - torch.tensor(corners)[None]).abs().amax(2)
    assert distances.amin(0).max() < 1e-3, "each object has its box"
    assert torch.equal(answer.labels, sample.targets.labels[distances.argmin(1)])
    assert len(tiled(sample).problem.layout[0].places) == 16


def test_what_is_larger_than_a_tile_is_found_in_the_whole_image() -> None:
    large = [[20.0, 30.0, 280.0, 200.0]]
    (without,) = answer_tiled(tiled(photo((250, 310), large)), perfect)
    (answer,) = answer_tiled(tiled(photo((250, 310), large), with_whole=True), perfect)
    assert len(without) > 1, "parts of it alone"
    assert torch.allclose(answer.boxes, torch.tensor(large), atol=1e-3)


def test_tiles_are_answered_a_few_at_a_time_at_the_size_of_an_image() -> None:
    batch, asked = tiled(photo((700, 400))), []

    def answer(part: Batch) -> list[Detections]:
        asked.append((len(part), tuple(part.images.shape[2:]), part.padding.any().item(), part.problem))
        assert part.original_sizes.tolist() == [[100, 100]] * len(part)
        return perfect(part)

    answer_tiled(batch, answer)
    count = len(batch.problem.layout[0].places)
    assert count > 2 * TILES_AT_ONCE
    assert sum(length for length, *_ in asked) == count
    assert {tuple(rest) for _, *rest in asked} == {((64, 64), False, None)}
    assert max(length for length, *_ in asked) == TILES_AT_ONCE


PLACES = (Place(0, 0, 100, 100), Place(0, 80, 100, 100))


@pytest.mark.parametrize(
    ("left", "right", "kept"),
    [
        pytest.param([82, 10, 92, 20, 0.6], [82, 10, 92, 21, 0.7], [0.7], id="whole in both: the surer one"),
        pytest.param([85, 10, 100, 40, 0.9], [85, 10, 130, 40, 0.5], [0.5], id="a cut box gives way to a whole one"),
        pytest.param([85, 10, 100, 40, 0.9], [85, 10, 130, 40, 0.4], [0.9, 0.4], id="… unless it is twice as sure"),
        pytest.param([85, 10, 100, 40, 0.9], [110, 10, 130, 40, 0.8], [0.9, 0.8], id="a cut box that is alone stays"),
        pytest.param([70, 10, 100, 40, 0.7], [80, 10, 125, 40, 0.6], [0.7], id="cut in both: the surer one"),
        pytest.param([20, 10, 100, 40, 0.7], [80, 10, 160, 40, 0.6], [0.7, 0.6], id="large, in two pieces"),
        pytest.param([82, 10, 92, 20, 0.6], [82, 30, 92, 40, 0.7], [0.7, 0.6], id="different objects"),
    ],
)
def test_of_two_tiles_one_answer_is_left(left: list[float], right: list[float], kept: list[float]) -> None:
    parts = [found([box[:4]], [box[4]]) for box in (left, right)]
    for order in ((0, 1), (1, 0)):
        merged = merge([parts[place] for place in order], [PLACES[place] for place in order], (100, 180))
        assert merged.scores.tolist() == pytest.approx(kept)
    other = [parts[0], replace(parts[1], labels=torch.tensor([1]))]
    assert len(merge(other, PLACES, (100, 180))) == 2, "classes never remove one another"


def test_a_border_of_the_image_cuts_nothing_and_a_tile_keeps_all_that_it_found() -> None:
    at_the_rim = [found([[0, 0, 30, 30], [1, 1, 31, 31]], [0.9, 0.2]), found([], [])]
    assert merge(at_the_rim, PLACES, (100, 180)).scores.tolist() == pytest.approx([0.9, 0.2])
    # The first box removes the one from the whole image, which then can't remove the second.
    whole, image = found([[0, 0, 30, 30]], [0.5]), Place(0, 0, 100, 180)
    assert merge([*at_the_rim, whole], (*PLACES, image), (100, 180)).scores.tolist() == pytest.approx([0.9, 0.2])
    surer = replace(whole, scores=torch.tensor([0.95]))
    assert merge([*at_the_rim, surer], (*PLACES, image), (100, 180)).scores.tolist() == pytest.approx([0.95])


@torch.no_grad()
def test_a_small_image_is_answered_to_the_bit_as_without_tiles() -> None:
    objective = TASK.objective(TINY_DETR.build()).eval()
    for size in ((100, 60), (64, 64)):
        views = [replace(TASK, tile_size=side).views(training=False) for side in (None, 100, 64)]
        plain, small, large = (
            unpadded(objective.answer, collate([view(photo(size), torch.Generator())]))[0] for view in views
        )
        assert torch.equal(plain.boxes, small.boxes)
        assert torch.equal(plain.scores, small.scores)
        assert (len(large) == len(plain)) == (size == (64, 64)), "the larger image has tiles of 64"


@torch.no_grad()
def test_a_batch_may_hold_images_with_and_without_tiles() -> None:
    objective = replace(TASK, tile_size=64, tile_overlap=0.1).objective(TINY_DETR.build()).eval()
    views = replace(TASK, tile_size=64, tile_overlap=0.1).views(training=False)
    samples = [views(photo(size), torch.Generator()) for size in ((100, 60), (64, 64), (150, 90))]
    together = unpadded(objective.answer, collate(samples))
    for sample, one in zip(samples, together, strict=True):
        (alone,) = unpadded(objective.answer, collate([sample]))
        assert len(one) == len(alone)
        assert torch.allclose(one.boxes, alone.boxes, atol=1e-3)


def test_the_large_image_stays_behind_when_a_batch_moves_or_is_scored() -> None:
    batch = collate([replace(TASK, tile_size=64).views(training=False)(photo((150, 90)), torch.Generator())])
    moved, left = batch.to("meta"), without_pixels(batch)
    assert moved.images.is_meta
    assert moved.problem.original[0].image.shape == (3, 150, 90)
    assert not moved.problem.original[0].image.is_meta
    assert left.problem.original[0].image.numel() == 0
    assert replace(TASK, tile_size=64).in_parts
    assert not TASK.in_parts


def as_it_is(sample: Sample, generator: torch.Generator) -> Sample:
    return sample


def test_a_training_tile_shows_the_objects_that_lie_inside_it_well_enough() -> None:
    corners = [[40.0, 40.0, 60.0, 60.0], [140.0, 10.0, 180.0, 50.0], [5.0, 120.0, 25.0, 140.0]]
    sample, kept = photo((150, 200), corners), Counter[int]()
    views = pickle.loads(pickle.dumps(TrainingTiles(side=80, least_left=0.5, then=as_it_is)))
    for seed in range(200):
        tile = views(sample, torch.Generator().manual_seed(seed))
        assert tile.image.shape == (3, 80, 80)
        kept[len(tile.targets)] += 1
        # Where the tile lies follows from its noise.
        spot = (sample.image.unfold(1, 80, 1).unfold(2, 80, 1)[:, :, :, 0, :8] == tile.image[:, None, None, 0, :8]).all(
            -1
        )
        top, left = spot.all(0).nonzero()[0].tolist()
        shown = 0
        for x1, y1, x2, y2 in corners:
            width = max(0.0, min(x2 - left, 80) - max(x1 - left, 0))
            height = max(0.0, min(y2 - top, 80) - max(y1 - top, 0))
            shown += width * height >= 0.5 * (x2 - x1) * (y2 - y1)
        assert len(tile.targets) == shown
    assert kept[1] > 100, "half of the tiles lie around an object"
    assert kept[0] > 10


def test_training_tiles_are_a_function_of_the_generator_and_leave_small_images_alone() -> None:
    views = replace(TASK, tile_size=64).views()
    large, small = photo((150, 200), [[40.0, 40.0, 60.0, 60.0]]), photo((64, 50))
    first, again, other = (views(large, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    generator = torch.Generator().manual_seed(5)
    assert same(views(small, generator), TASK.views()(small, torch.Generator().manual_seed(5)))


def test_objects_are_counted_tile_by_tile(tmp_path: Path) -> None:
    boxes = to_normalised(
        torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [85, 10, 95, 20], [90, 90, 99, 99]]), (100, 200)
    )
    targets = Targets(boxes=boxes, labels=torch.zeros(4, dtype=torch.int64))
    assert most_in_a_tile(targets, (100, 200), 50, 0.2) == 2
    assert most_in_a_tile(targets, (100, 200), 200, 0.2) == 4
    assert most_in_a_tile(None, (100, 200), 50, 0.2) == 0
    path = write_shapes(tmp_path, images=3, objects=(3, 3), size=64, seed=1)
    source = open_coco(str(path), ImageRules())
    assert TASK.shown_at_once(source) == [3, 3, 3]
    tiled = replace(TASK, tile_size=32, tile_overlap=0.0).shown_at_once(source)
    assert all(1 <= count <= 3 for count in tiled)
    assert min(tiled) < 3


def test_tasks_that_look_at_the_whole_image_refuse_tiles() -> None:
    with pytest.raises(ConfigError, match="tile_size: the masks and segments of tiles can't be merged; leave"):
        check(Panoptic(tile_size=640))
    with pytest.raises(ConfigError, match="tile_size: one-shot detection asks about an image as a whole"):
        check(OneShot(tile_size=640))
    with pytest.raises(ConfigError, match=r"tile_size: .5. does not fit; expects .* 32"):
        override(TASK, {"tile_size": "5"})
    chosen = override(TASK, {"tile_size": "640"})
    check(chosen)
    assert from_document(Detection, to_document(chosen)) == chosen
    assert override(chosen, {"tile_size": "none"}) == TASK
