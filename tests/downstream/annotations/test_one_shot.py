"""CoAE's protocol: who is asked for what, how often, and that held-out classes never become targets."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from downstream.annotations.coco import open_coco
from downstream.annotations.labelled import LabelledImages
from downstream.annotations.one_shot import (
    VOC_UNSEEN,
    EvaluationPairs,
    TrainingPairs,
    coco_unseen,
    cut_query,
    square,
)
from downstream.annotations.shapes import write_shapes
from downstream.annotations.voc import CLASSES
from ssldet.data.geometry import ShortSide
from ssldet.data.images import ImageRules
from ssldet.data.joining import ConcatSource
from ssldet.data.loader import evaluation_batches, training_batches
from ssldet.data.sources import PartSource
from ssldet.errors import DataError
from ssldet.weights.coco import coco_things

NAMES = ("circle", "square", "triangle", "cross")
UNSEEN = ("square", "cross")
RECORDED = [47, 17, 56, 13, 11, 54]
"""The first queries of the set below; if they change, so does every figure measured with them."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    path = write_shapes(tmp_path_factory.mktemp("shapes"), images=24, objects=(1, 4), classes=NAMES, seed=5)
    return open_coco(str(path), ImageRules(min_side=17, max_pixels=10**6))


def training(images: LabelledImages | PartSource) -> TrainingPairs:
    return TrainingPairs(images, UNSEEN, patch_size=16, query_flip=0.5)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def boxes_of(images: LabelledImages, index: int, label: int) -> Tensor:
    targets = images[index].targets
    return targets.boxes[targets.labels == label]


def test_objects_are_known_without_reading(images: LabelledImages) -> None:
    both = PartSource(ConcatSource([images, images]), [3, 30])
    for index, place in ((0, 3), (1, 6)):
        assert torch.equal(both.targets_of(index).boxes, images[place].targets.boxes)
        assert torch.equal(both.targets_of(index).labels, images[place].targets.labels)


def test_the_splits_are_the_published_ones() -> None:
    voc = CLASSES.split()
    assert [voc.index(name) + 1 for name in VOC_UNSEEN] == [1, 8, 10, 17]
    splits = [coco_unseen(number) for number in (1, 2, 3, 4)]
    assert [len(split) for split in splits] == [20] * 4
    assert set().union(*splits) == set(coco_things().values())
    assert splits[0][:4] == ("person", "airplane", "boat", "parking meter")
    assert splits[3][0] == "motorcycle"


def test_only_images_with_a_seen_class_are_trained_on(images: LabelledImages) -> None:
    with_seen = [i for i in range(len(images)) if {0, 2} & set(images[i].targets.labels.tolist())]
    pairs = training(images)
    assert 0 < len(pairs) < len(images)
    assert [pairs.draw(i, seeded(1)).key for i in range(len(pairs))] == [images.keys[i] for i in with_seen]
    assert pairs.classes == ("match",)
    assert Path(pairs.path_of(1)) == images.path_of(with_seen[1])


def test_a_share_of_pairs_asks_for_a_seen_class_that_is_not_there(images: LabelledImages) -> None:
    absent = TrainingPairs(images, ("cross",), patch_size=16, query_flip=0.0, absent_share=0.5)
    empty = 0
    for index in range(len(absent)):
        labels = set(images[images.keys.index(absent[index].key)].targets.labels.tolist())
        answers = [len(absent.draw(index, seeded(number)).targets) for number in range(12)]
        # Where all three seen classes are present, there is nothing else to ask for.
        assert (0 in answers) == bool({0, 1, 2} - labels)
        empty += answers.count(0)
    assert 0.25 < empty / (12 * len(absent)) < 0.6
    assert all(len(sample.targets) for sample in map(training(images).__getitem__, range(len(training(images)))))
    always = TrainingPairs(images, UNSEEN, patch_size=16, query_flip=0.0, absent_share=1.0)
    alone = next(i for i in range(len(always)) if 0 not in images[images.keys.index(always[i].key)].targets.labels)
    shown = {always.draw(alone, seeded(number)).problem.pixels.numpy().tobytes() for number in range(60)}  # type: ignore[union-attr]
    circles = sum(int((one.targets.labels == 0).sum()) for one in images)
    assert 1 < len(shown) <= circles


def test_targets_are_all_boxes_of_one_seen_class_and_no_other(images: LabelledImages) -> None:
    pairs = training(images)
    place = {key: number for number, key in enumerate(images.keys)}
    for index in range(len(pairs)):
        for seed in range(8):
            sample = pairs.draw(index, seeded(seed))
            image = place[sample.key]
            allowed = [boxes_of(images, image, label) for label in (0, 2)]
            assert any(torch.equal(sample.targets.boxes, boxes) for boxes in allowed)
            assert len(sample.targets) > 0
            assert not sample.targets.labels.any()


def test_rare_classes_are_asked_for_more_often(images: LabelledImages) -> None:
    held = [images.targets_of(i).labels.tolist() for i in range(len(images))]
    both = [i for i, labels in enumerate(held) if {0, 2} <= set(labels)][:2]
    pairs = training(PartSource(images, both + [i for i, labels in enumerate(held) if 0 in labels and 2 not in labels]))
    circles, triangles = (int((pairs._labels == label).sum()) for label in (0, 2))
    wanted, drawn = circles / (circles + triangles), 400
    assert wanted > 0.7, "the set must tell this rule from an even one"
    asked = boxes_of(images, both[0], 2)
    found = sum(torch.equal(pairs.draw(0, seeded(s)).targets.boxes, asked) for s in range(drawn)) / drawn
    assert found == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / drawn))


def test_queries_come_from_the_whole_set_and_half_are_mirrored(images: LabelledImages) -> None:
    pairs = training(images)
    sample = images[int(pairs._kept[0])]
    label = next(number for number in (0, 2) if number in sample.targets.labels)
    pool = {}
    for image in range(len(images)):
        size = images[image].original_size
        for box in boxes_of(images, image, label):
            corners = (torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * size[0]).float()
            pool[cut_query(images[image].image, corners, 16).numpy().tobytes()] = (image, False)
            pool[cut_query(images[image].image, corners, 16).flip(-1).contiguous().numpy().tobytes()] = (image, True)
    drawn = []
    for seed in range(200):
        pair = pairs.draw(0, seeded(seed))
        if torch.equal(pair.targets.boxes, boxes_of(images, int(pairs._kept[0]), label)):
            assert pair.problem.pixels is not None
            assert pair.problem.pixels.shape == (1, 3, 16, 16)
            drawn.append(pool[pair.problem.pixels[0].contiguous().numpy().tobytes()])
    assert len({image for image, _ in drawn}) > 5
    assert 0.35 < sum(mirrored for _, mirrored in drawn) / len(drawn) < 0.65


def test_a_query_is_the_whole_object_in_a_black_square() -> None:
    image = torch.arange(3 * 20 * 30, dtype=torch.int64).remainder(200).add(1).to(torch.uint8).view(3, 20, 30)
    patch = cut_query(image, torch.tensor([4.2, 3.0, 9.8, 13.0]), 10)
    assert torch.equal(patch[:, :, 2:8], image[:, 3:13, 4:10])
    assert not patch[:, :, :2].any()
    assert not patch[:, :, 8:].any()
    assert square(image, 15).shape == (3, 15, 15)
    assert cut_query(image, torch.tensor([29.9, 19.9, 30.0, 20.0]), 8).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_depends_on_the_seed_alone(images: LabelledImages, workers: int) -> None:
    """Parts of a batch, workers and a pickled copy: the same places give the same pairs."""
    views = ShortSide((32,), 64)

    def stream(seed: int, batch_size: int, steps: int, workers: int = 0) -> tuple[Tensor, list[str]]:
        pairs = pickle.loads(pickle.dumps(training(images)))
        loader = training_batches(pairs, views, seed=seed, batch_size=batch_size, total_steps=steps, workers=workers)
        batches = list(loader)
        assert all(batch.problem.pixels is not None for batch in batches)
        return torch.cat([batch.problem.pixels for batch in batches]), [key for batch in batches for key in batch.keys]

    patches, keys = stream(3, 6, 4)
    again, same = stream(3, 4, 6, workers)
    assert keys == same
    assert torch.equal(patches, again)
    assert not torch.equal(patches, stream(4, 6, 4)[0])


def test_every_class_that_an_image_holds_is_asked_for_once(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, UNSEEN, patch_size=16)
    wanted = [(i, label) for i in range(len(images)) for label in sorted(set(images.targets_of(i).labels.tolist()))]
    assert list(pairs.pairs) == wanted
    assert len(set(pairs.keys)) == len(pairs)
    for number, (image, label) in enumerate(wanted[:9]):
        sample = pairs[number]
        assert sample.key == f"{images.keys[image]}:{NAMES[label]}"
        assert torch.equal(sample.targets.boxes, boxes_of(images, image, label))
        query = pairs.query_of(number)
        assert pairs._labels[query] == label
    every = EvaluationPairs(images, UNSEEN, patch_size=16, absent=True)
    assert len(every) == len(images) * len(NAMES)
    assert any(not len(every[number].targets) for number in range(len(NAMES)))


def test_positions_go_through_all_queries(images: LabelledImages) -> None:
    count = int((EvaluationPairs(images, UNSEEN, patch_size=16)._labels == 0).sum())
    first = next(n for n, (_, label) in enumerate(EvaluationPairs(images, (), patch_size=16).pairs) if label == 0)
    taken = [EvaluationPairs(images, UNSEEN, patch_size=16, position=k).query_of(first) for k in range(count + 1)]
    assert len(set(taken[:count])) == count
    assert taken[count] == taken[0]


def test_queries_of_a_test_depend_on_neither_order_nor_batches(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, UNSEEN, patch_size=16)
    seen = {}
    for size, workers in ((1, 0), (5, 2)):
        for batch in evaluation_batches(pairs, ShortSide((32,), 64), batch_size=size, workers=workers):
            for key, patch in zip(batch.keys, batch.problem.pixels, strict=True):
                assert torch.equal(seen.setdefault(key, patch), patch)
    assert len(seen) == len(pairs)


def test_the_choice_of_queries_is_the_same_on_any_machine(images: LabelledImages) -> None:
    pairs = EvaluationPairs(images, UNSEEN, patch_size=16)
    assert [pairs.query_of(number) for number in range(6)] == RECORDED


def test_what_does_not_fit_is_refused(images: LabelledImages) -> None:
    with pytest.raises(DataError, match=r"no class 'cros'.*cross.*task.unseen=cat,dog"):
        TrainingPairs(images, ("cros",), patch_size=16, query_flip=0.5)
    with pytest.raises(DataError, match="hold out fewer"):
        TrainingPairs(images, NAMES, patch_size=16, query_flip=0.5)


def test_fingerprints_tell_other_pairs(images: LabelledImages) -> None:
    made = [
        training(images),
        TrainingPairs(images, ("circle",), patch_size=16, query_flip=0.5),
        EvaluationPairs(images, UNSEEN, patch_size=16),
        EvaluationPairs(images, UNSEEN, patch_size=16, position=1),
        EvaluationPairs(images, UNSEEN, patch_size=16, absent=True),
    ]
    assert len({pairs.fingerprint for pairs in made}) == len(made)
