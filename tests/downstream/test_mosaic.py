"""Mosaic and mixup: pixels, boxes and masks move together, and what is drawn follows from the generator."""

import pickle

import pytest
import torch

from downstream.detection import Detection
from downstream.mosaic import MixedImages
from downstream.one_shot import OneShot
from downstream.panoptic import Panoptic
from downstream.self_training import SelfTraining
from ssldet.boxes import to_absolute, to_normalised
from ssldet.data.problems import same
from ssldet.errors import ConfigError
from ssldet.recipe import check
from ssldet.source import Source
from ssldet.types import Sample, Targets

SIZES = ((60, 80), (90, 50), (40, 44), (200, 300), (64, 64))


class Squares(Source):
    """Black images, each with one square of its own grey; the masks are exact."""

    classes = ("a", "b", "c", "d", "e")
    fingerprint = "squares"
    skipped = ()

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> Sample:
        height, width = SIZES[index]
        image, masks = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(1, height, width, dtype=torch.bool)
        top, left, side = height // 3, width // 3, min(height, width) // 3
        image[:, top : top + side, left : left + side] = 50 * (index + 1)
        masks[:, top : top + side, left : left + side] = True
        boxes = to_normalised(torch.tensor([[left, top, left + side, top + side]]).float(), (height, width))
        targets = Targets(boxes=boxes, labels=torch.tensor([index]), masks=masks)
        return Sample(image=image, targets=targets, key=str(index), original_size=(height, width))


def mixed(*, mosaic: float = 0.0, mixup: float = 0.0, longest: int = 100, least_left: float = 0.0) -> MixedImages:
    return MixedImages(Squares(), mosaic=mosaic, mixup=mixup, longest=longest, least_left=least_left)


def drawn(source: MixedImages, index: int, seed: int) -> Sample:
    return source.draw(index, torch.Generator().manual_seed(seed))


def test_a_mosaic_shows_each_object_where_its_box_is() -> None:
    source, counts = pickle.loads(pickle.dumps(mixed(mosaic=1.0))), set()
    for seed in range(12):
        sample = drawn(source, 3, seed)
        height, width = sample.image.shape[1:]
        assert (height, width) == (67, 100), "the aspect of the first image, and no longer than asked for"
        assert sample.key == "3"
        counts.add(len(sample.targets))
        assert sample.targets.masks is not None
        for box, label, mask in zip(
            to_absolute(sample.targets.boxes, (height, width)), sample.targets.labels, sample.targets.masks, strict=True
        ):
            rows, columns = mask.nonzero().T
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (edges - box).abs().max() <= 1.5, "box and mask agree"
            inner = mask.clone()
            inner[rows.min()], inner[rows.max()], inner[:, columns.min()], inner[:, columns.max()] = [False] * 4
            if inner.any():
                assert (sample.image[0][inner].float() - 50 * (label + 1)).abs().quantile(0.9) <= 12
    assert {3, 4} <= counts


def test_objects_with_too_little_left_are_no_targets() -> None:
    def areas(least_left: float) -> list[float]:
        samples = [drawn(mixed(mosaic=1.0, least_left=least_left), 0, seed) for seed in range(12)]
        return [float(mask.sum()) for sample in samples for mask in sample.targets.masks]

    assert len(areas(0.9)) < len(areas(0.0))


def test_mixup_shows_both_images_and_their_objects() -> None:
    for seed in range(10):
        sample, alone = drawn(mixed(mixup=1.0), 3, seed), Squares()[3]
        assert sample.image.shape == alone.image.shape
        assert sample.targets.labels.tolist()[0] == 3
        assert len(sample.targets) == 2
        assert torch.equal(sample.targets.boxes[:1], alone.targets.boxes)
        other = int(sample.targets.labels[1])
        assert torch.allclose(sample.targets.boxes[1:], Squares()[other].targets.boxes)
        assert 0.4 * 200 <= sample.image[0, 70, 104] <= 0.6 * 200 + 0.6 * 50 * (other + 1)


def test_probabilities_decide_and_the_generator_alone() -> None:
    never, half = mixed(), mixed(mosaic=0.5)
    assert all(same(drawn(never, 1, seed), Squares()[1]) for seed in range(5))
    changed = sum(not same(drawn(half, 1, seed), Squares()[1]) for seed in range(60))
    assert 15 < changed < 45
    assert same(drawn(mixed(mosaic=0.7, mixup=0.5), 2, 9), drawn(mixed(mosaic=0.7, mixup=0.5), 2, 9))
    assert same(half[4], Squares()[4]), "read by number, images are as they are"


def test_a_task_mixes_training_images_alone_and_all_is_off_with_one_word() -> None:
    task = Detection(mosaic=0.5, mixup=0.1)
    prepared = task.prepare(Squares())
    assert isinstance(prepared, MixedImages)
    assert (prepared.longest, prepared.mosaic, prepared.mixup) == (1333, 0.5, 0.1)
    assert isinstance(task.prepare(Squares(), training=False), Squares)
    assert isinstance(Detection().prepare(Squares()), Squares)
    off = Detection(augmentation="none", mosaic=0.5, mixup=0.1, scales=(48,), eval_scale=48, max_size=80)
    assert isinstance(off.prepare(Squares()), Squares)
    views, plain = off.views(), off.views(training=False)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        assert same(views(Squares()[3], generator), plain(Squares()[3], generator))


def test_mixing_is_refused_where_it_would_lie() -> None:
    for task, why in (
        (Detection(mosaic=0.5, tile_size=64), "mosaic: images are cut into tiles; leave mosaic and mixup out"),
        (Panoptic(mixup=0.5), "mixup: masks say what each pixel is"),
        (SelfTraining(mosaic=0.5), "mosaic: images with and without labels are kept apart"),
        (OneShot(mosaic=0.5), "mosaic: one-shot detection pairs each image with a query"),
    ):
        with pytest.raises(ConfigError, match=why):
            check(task)
