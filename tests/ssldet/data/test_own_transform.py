"""Transforms of the user's own: what they get, that chance is ours, and every kind of nonsense in one line."""

import pickle
import random
import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import ssldet
from downstream.detection import Detection
from ssldet.boxes import to_absolute, to_normalised
from ssldet.data.geometry import InOrder, ShortSide
from ssldet.data.loader import training_batches
from ssldet.data.own_transform import OwnTransform, adopt, register_augmentation, transform_named
from ssldet.data.problems import same
from ssldet.errors import ConfigError, UnreadableError
from ssldet.source import Source
from ssldet.types import Sample, Targets
from ssldet.verbs.choosing import changes_of

SIZE = (40, 60)
CORNERS = [[2.0, 3.0, 12.0, 23.0], [30.0, 10.0, 50.0, 30.0], [0.0, 0.0, 60.0, 40.0]]


@pytest.fixture
def sample() -> Sample:
    image = torch.randint(256, (3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, CORNERS, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    targets = Targets(boxes=to_normalised(torch.tensor(CORNERS), SIZE), labels=torch.tensor([4, 0, 2]), masks=masks)
    return Sample(image=image, targets=targets, key="some/photo.jpg", original_size=SIZE)


def applied(transform: Any, sample: Sample, seed: int = 1) -> Sample:
    return OwnTransform(name="mine:T", transform=transform)(sample, torch.Generator().manual_seed(seed))


def test_image_boxes_and_masks_move_together(sample: Sample) -> None:
    flipped = applied(v2.RandomHorizontalFlip(p=1.0), sample)
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert flipped.targets.masks is not None
    assert torch.equal(flipped.targets.masks, sample.targets.masks.flip(-1))
    assert to_absolute(flipped.targets.boxes, SIZE)[0].tolist() == pytest.approx([48, 3, 58, 23], abs=1e-4)
    assert type(flipped.targets.boxes) is type(flipped.image) is torch.Tensor
    assert flipped.key == sample.key
    unmasked = replace(sample, targets=replace(sample.targets, masks=None))
    assert applied(v2.RandomHorizontalFlip(p=1.0), unmasked).targets.masks is None


def test_boxes_that_vanish_go_with_their_labels_and_masks(sample: Sample) -> None:
    def left_half(image: Any, targets: dict[str, Any]) -> Any:
        cut = {name: v2.functional.crop(targets[name], 0, 0, 40, 25) for name in ("boxes", "masks")}
        return v2.functional.crop(image, 0, 0, 40, 25), {**targets, **cut}

    cut = applied(left_half, sample)
    assert cut.image.shape == (3, 40, 25)
    assert cut.targets.labels.tolist() == [4, 2]
    assert cut.targets.masks is not None
    assert cut.targets.masks.shape == (2, 40, 25)
    assert to_absolute(cut.targets.boxes, (40, 25))[1].tolist() == pytest.approx([0, 0, 25, 40], abs=1e-4)
    nothing = applied(v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()]), sample)
    assert len(nothing.targets) == len(nothing.targets.labels) <= 3


def test_another_format_and_numbers_from_0_to_1_are_understood(sample: Sample) -> None:
    pipeline = v2.Compose([v2.ConvertBoundingBoxFormat("CXCYWH"), v2.ToDtype(torch.float32, scale=True)])
    changed = applied(pipeline, sample)
    assert torch.equal(changed.image, sample.image)
    assert torch.allclose(changed.targets.boxes, sample.targets.boxes, atol=1e-6)


class Chancy(v2.Transform):
    """Draws from every global generator."""

    def forward(self, image: Any, targets: Any) -> Any:
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        return tv_tensors.Image((image.float() * drawn[0] * drawn[1] * drawn[2]).to(torch.uint8)), targets


def test_what_is_drawn_follows_from_the_generator_and_the_global_ones_stay(sample: Sample) -> None:
    # Python's own state can't be compared: the shape checks that run in tests draw from it.
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = (applied(pickle.loads(pickle.dumps(Chancy())), sample, seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    assert np.random.get_state()[1].tolist() == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def boxes_of(values: Any) -> Any:
    """Return a transform that changes the boxes alone."""
    return lambda image, targets: (image, {**targets, "boxes": values(targets["boxes"])})


class Photos(Source):
    """An image that can't be read, and one that can."""

    classes = ("a", "b", "c", "d", "e")
    fingerprint = "photos"
    skipped = ()

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        if index == 0:
            raise UnreadableError("first.jpg", "truncated")
        return self.sample


def test_a_stream_depends_neither_on_workers_nor_on_where_it_starts(sample: Sample) -> None:
    views = InOrder((OwnTransform(name="mine:T", transform=Chancy()), ShortSide((20,), 40)))
    source = Photos(replace(sample, targets=replace(sample.targets, masks=None)))

    def images(**how: int) -> list[torch.Tensor]:
        stream = training_batches(source, views, seed=5, batch_size=2, total_steps=3, **how)
        return [batch.images for batch in stream]

    whole, apart, rest = images(), images(workers=1), images(start_step=1)
    assert len(whole) == 3
    assert not torch.equal(whole[0], whole[1])
    assert all(map(torch.equal, whole, apart))
    assert all(map(torch.equal, whole[1:], rest))


NONSENSE = {
    "fails: ZeroDivisionError: division by zero": lambda image, targets: 1 / 0,
    "fails: SystemExit: 3": lambda image, targets: sys.exit(3),
    "returns 'Image'; it must return an image and a dictionary of targets": lambda image, targets: image,
    "returns 2 boxes and 3 labels; remove both": boxes_of(lambda boxes: torch.as_tensor(boxes)[:2]),
    "returns boxes that are not finite": boxes_of(lambda boxes: torch.as_tensor(boxes) * float("nan")),
    "returns 'Tensor' of shape (3, 3) as boxes": boxes_of(lambda boxes: torch.zeros(3, 3)),
    "returns 'NoneType' as boxes": boxes_of(lambda boxes: None),
    "returns labels that are not the numbers of classes": lambda image, targets: (
        image, {**targets, "labels": -targets["labels"]}
    ),
    "returns an image with numbers from 0 to 255; they must be from 0 to 1": lambda image, targets: (
        image.float() * 0 + torch.linspace(0, 255, 60), targets
    ),
    "returns an image with numbers from nan to nan": lambda image, targets: (image / 0 * 0, targets),
    "returns an image of torch.int64": lambda image, targets: (image.long(), targets),
    "returns 'Tensor' of shape (1, 40, 60) as the image": lambda image, targets: (torch.zeros(1, 40, 60), targets),
    "returns 'Image' as the image": v2.Compose([v2.ToPILImage()]),
    "returns boxes on a canvas of (40, 60) and an image of (20, 30)": lambda image, targets: (
        v2.functional.resize(image, [20, 30]), targets
    ),
    "returns masks of (3, 40, 60); with these boxes and this image they must be (3, 20, 30)": lambda image, targets: (
        v2.functional.resize(image, [20, 30]), {**targets, "boxes": torch.as_tensor(targets["boxes"]) / 2}
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_one_line_that_names_the_transform_and_the_image(what: str, sample: Sample) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)) as raised:
        applied(NONSENSE[what], sample)
    (line,) = str(raised.value).splitlines()
    assert line.startswith("task.augmentation: 'mine:T' ")
    assert "some/photo.jpg" in line


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> str:
    """A module that lies on the path and that nobody has imported."""
    source = "\n".join(
        [
            "from torchvision.transforms import v2",
            "flip = v2.RandomHorizontalFlip(p=1.0)",
            "Flip = v2.RandomHorizontalFlip",
            "def make():\n    return v2.RandomHorizontalFlip(p=1.0)",
            "def turn(image, targets):\n    return v2.RandomHorizontalFlip(p=1.0)(image, targets)",
            "def broken():\n    raise OSError('no table')",
            "def wrong(image, targets):\n    return 3",
            "number = 3",
        ]
    )
    (tmp_path / "my_changes.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_changes", raising=False)
    return "my_changes"


@pytest.mark.parametrize("name", ["flip", "make", "turn"])
def test_an_object_a_maker_and_a_function_are_told_apart(mine: str, name: str, sample: Sample) -> None:
    changes_of((), overrides={"task.augmentation": f"{mine}:{name}"})
    changed = transform_named(f"{mine}:{name}", ())(sample, torch.Generator())
    assert torch.equal(changed.image, sample.image.flip(-1))


def test_a_file_chooses_no_code(mine: str, sample: Sample) -> None:
    """A name from a file finds what is imported already; the command line and the API import what they name."""
    task = Detection(augmentation=f"{mine}:flip")
    with pytest.raises(
        ConfigError, match=r"a file may not choose what is imported; .* --set task\.augmentation=my_chang"
    ):
        task.views()
    assert mine not in sys.modules
    task.views(training=False)
    changes_of((), overrides={"task.augmentation": f"{mine}:flip"})
    task = replace(task, scales=(20,), max_size=40, eval_scale=20)
    flipped = task.views(training=False)(replace(sample, image=sample.image.flip(-1)), torch.Generator())
    assert torch.equal(task.views()(sample, torch.Generator()).image, flipped.image)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scale_jiter", r"no 'scale_jiter' \(did you mean 'scale_jitter'\?\); there are detr, scale_jitter, none"),
        ("my_changes:broken", "'my_changes:broken' can't be made: OSError: no table"),
        ("my_changes:number", "'my_changes:number' is 'int', which can't be called"),
        ("my_changes:wrong", "'my_changes:wrong' returns 'int'; .* [(]image some/photo.jpg[)]"),
        ("my_changes:absent", "augmentation 'my_changes:absent' .*can't be imported"),
        ("no_such_module:T", "can't be imported: No module named 'no_such_module'; put its folder on PYTHONPATH"),
    ],
)
def test_what_can_not_be_had_is_said_before_training(mine: str, name: str, says: str, sample: Sample) -> None:
    def begin() -> None:
        changes_of((), overrides={"task.augmentation": name})
        Detection(augmentation=name).prepare(Photos(sample))

    with pytest.raises(ConfigError, match=says):
        begin()


def test_the_api_takes_the_object_itself(sample: Sample) -> None:
    transform = v2.RandomHorizontalFlip(p=1.0)
    changes = changes_of((), overrides={"task.augmentation": transform})
    name = changes["task.augmentation"]
    assert name == adopt(transform) == "RandomHorizontalFlip", "the same object has one name"
    other = changes_of((), overrides={"task.augmentation": v2.RandomHorizontalFlip(p=0.0)})["task.augmentation"]
    assert other == "RandomHorizontalFlip-2"
    register_augmentation("mine", transform)
    assert ssldet.register_augmentation is register_augmentation
    task = Detection(augmentation="mine", scales=(20,), max_size=40, eval_scale=20)
    assert task.views()(sample, torch.Generator()).image.shape == (3, 20, 30)
    for wrong, says in ((("a:b", transform), "without ':'"), (("a", 3), "'int' can't be called")):
        with pytest.raises(ConfigError, match=says):
            register_augmentation(*wrong)
