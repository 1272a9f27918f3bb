"""a detector's configuration -> the laws that every detector must keep; `check_detector` runs them all."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssldet.defaults import FINETUNE_LARGE
from ssldet.detectors.base import Detector, DetectorConfig, backbone_of
from ssldet.losses.set_prediction import set_prediction
from ssldet.recipe import from_document, override, to_document
from ssldet.registry import find
from ssldet.testing.law import require
from ssldet.types import Predictions, Queries, Targets

SIZES = ((70, 90), (64, 51), (33, 97))
"""Height and width of the images that laws look at: unequal, so that no axis can be taken for another."""
CLOSE = 1e-4
"""Largest difference between answers that should be the same, in logits and in normalised boxes."""
OWN_FORMAT = "safetensors"
"""The exporter that writes any detector."""
BF16 = 0.1
"""Largest difference of a normalised box between mixed precision and 32 bits."""

DetectorLaw = Callable[[DetectorConfig], None]


def check_detector(config: DetectorConfig) -> None:
    """Check every law of detectors.

    Args:
        config: A small detector: each law builds it and runs it on the CPU.

    Raises:
        AssertionError: A law is broken; the message says which and how.
    """
    for law in DETECTOR_LAWS:
        law(config)


def sections_cover_the_state(config: DetectorConfig) -> None:
    """Every parameter and buffer belongs to exactly one section, and every section has some."""
    detector = _built(config)
    for name in detector.state_dict():
        owners = [
            section
            for section, parts in detector.sections.items()
            if name.startswith(tuple(f"{part}." for part in parts))
        ]
        require(len(owners) == 1, f"{name} belongs to the sections {owners}; it must belong to one")
    for section, parts in detector.sections.items():
        for part in parts:
            held = list(detector.get_submodule(part).state_dict())
            require(bool(held), f"the section {section!r} names {part!r}, which holds no parameter and no buffer")


def it_says_what_it_is(config: DetectorConfig) -> None:
    """Numbers of classes, queries and channels are those that the configuration asks for and the answers have."""
    detector = _built(config)
    images, padding = _canvas(SIZES)
    found = _answers(detector, images, padding)
    require(detector.num_classes == config.num_classes, f"num_classes is {detector.num_classes}")
    require(detector.num_queries == config.num_queries, f"num_queries is {detector.num_queries}")
    rows = detector.scores.num_classes(found.logits.shape[-1])
    require(rows == config.num_classes, f"the class head has rows for {rows} classes instead of {config.num_classes}")
    require(found.scores == detector.scores, "predictions and detector read class logits differently")
    shape = (len(SIZES), config.num_queries)
    require(found.boxes.shape[1:3] == shape, f"boxes have the shape {list(found.boxes.shape)}, not L B Q 4")
    require(found.states.shape[-1] == detector.width, f"states have {found.states.shape[-1]} channels")
    features = detector.features(detector.normalise(images))
    require(features.shape[1] == detector.feature_channels, f"features have {features.shape[1]} channels")
    for layer in detector.sampling_layers():
        held = [name for name, _ in detector.named_parameters() if name.startswith(f"{layer}.")]
        require(bool(held), f"the sampling layer {layer!r} holds no parameter")
    require(bool(((found.boxes >= 0) & (found.boxes <= 1)).all()), "a box is not normalised cxcywh within 0 and 1")


def any_image_size_is_answered(config: DetectorConfig) -> None:
    """Images of any size, also a single one without padding, give finite answers; the detector pads by itself."""
    detector = _built(config)
    for size in SIZES:
        images, _ = _canvas([size])
        found = _answers(detector, images, None)
        finite = bool(found.boxes.isfinite().all() and found.logits.isfinite().all())
        require(finite, f"an image of {size[0]} x {size[1]} pixels gives answers that are not finite")


def padding_is_not_looked_at(config: DetectorConfig) -> None:
    """What pixels lie in the padding has no influence."""
    detector = _built(config)
    images, padding = _canvas(SIZES)
    other = torch.where(padding[:, None], torch.full_like(images, 200), images)
    _same(_answers(detector, images, padding), _answers(detector, other, padding), "pixels in the padding change them")


def images_do_not_see_each_other(config: DetectorConfig) -> None:
    """An image is answered in the same way whatever else is in its batch."""
    detector = _built(config)
    alone, _ = _canvas([SIZES[0]], seed=1)
    other, _ = _canvas([SIZES[0]], seed=2)
    together = _answers(detector, torch.cat([alone, other]), None)
    single = _answers(detector, alone, None)
    for name in ("logits", "boxes"):
        difference = float((getattr(together, name)[:, :1] - getattr(single, name)).abs().max())
        require(difference < CLOSE, f"{name} differ by {difference:.2g}: another image of the batch changes them")


def answers_are_repeatable(config: DetectorConfig) -> None:
    """In evaluation the same images give the same answers, bit by bit."""
    detector = _built(config)
    images, padding = _canvas(SIZES)
    one, other = (_answers(detector, images, padding) for _ in range(2))
    require(torch.equal(one.boxes, other.boxes) and torch.equal(one.logits, other.logits), "two answers differ")


def groups_do_not_see_each_other(config: DetectorConfig) -> None:
    """What is asked in one group of queries has no influence on another group, and groups come back with answers."""
    detector = _built(config)
    images, padding = _canvas(SIZES[:2])
    groups = torch.tensor([0, 0, 1, 1, 1])
    asked = _queries(detector, 5, seed=1)
    other = _queries(detector, 5, seed=2)
    mixed = replace(
        asked,
        content=torch.where((groups == 1)[None, :, None], other.content, asked.content),
        position=torch.where((groups == 1)[None, :, None], other.position, asked.position),
    )
    with torch.no_grad():
        pixels = detector.normalise(images, padding)
        one = detector(pixels, padding, replace(asked, groups=groups))
        two = detector(pixels, padding, replace(mixed, groups=groups))
    kept = groups == 0
    require(one.groups is not None and torch.equal(one.groups, groups), "predictions don't carry the queries' groups")
    difference = float((one.states[:, :, kept] - two.states[:, :, kept]).abs().max())
    require(difference < CLOSE, f"states of one group move by {difference:.2g} with the queries of another")
    moved = float((one.states[:, :, ~kept] - two.states[:, :, ~kept]).abs().max())
    require(moved > CLOSE, "answers don't depend on the queries at all")


def gradient_reaches_every_section(config: DetectorConfig) -> None:
    """Plain detection teaches every section but mask heads, and one that rests gets no gradient."""
    detector = _built(config).train()
    learning = [section for section in detector.sections if section != "mask_head"]
    detector.train_only(learning)
    _loss(detector, objects=3).backward()  # type: ignore[no-untyped-call]  # torch says no types
    for section, parts in detector.sections.items():
        parameters = [p for part in parts for p in detector.get_submodule(part).parameters()]
        reached = [p for p in parameters if p.grad is not None]
        if section not in learning:
            require(not reached, f"the section {section!r} rests and gets a gradient")
        elif any(p.requires_grad for p in parameters):
            require(bool(reached), f"the section {section!r} learns and gets no gradient")


def images_without_objects_teach(config: DetectorConfig) -> None:
    """A batch without any target has a finite loss and a finite gradient."""
    detector = _built(config).train()
    loss = _loss(detector, objects=0)
    loss.backward()  # type: ignore[no-untyped-call]  # torch says no types
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    finite = bool(loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    require(finite, "a batch without objects has a loss or a gradient that is not finite")


def weights_come_back(config: DetectorConfig) -> None:
    """The configuration as plain values and the saved state build the same detector again, bit by bit."""
    detector = _built(config)
    again = from_document(DetectorConfig, to_document(config))  # type: ignore[type-abstract]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: value.contiguous().clone() for name, value in detector.state_dict().items()}, path)
        copy = _built(again, seed=1)
        copy.load_state_dict(load_file(path))
    images, padding = _canvas(SIZES)
    one, other = _answers(detector, images, padding), _answers(copy, images, padding)
    require(torch.equal(one.boxes, other.boxes) and torch.equal(one.logits, other.logits), "the copy answers otherwise")


def an_export_is_proven(config: DetectorConfig) -> None:
    """Written in our own format, which holds every detector, it comes back with the same tensors and answers."""
    detector = _built(config)
    task = find("ssldet.recipes", FINETUNE_LARGE)().task
    info = {"task": to_document(task), "detector": to_document(config)}
    with tempfile.TemporaryDirectory() as folder:
        report = find("ssldet.exporters", OWN_FORMAT)(
            task.objective(detector), info, Path(folder) / "model.safetensors"
        )
    told = report.to_json()
    require(told["equal"] == told["tensors"] == len(detector.state_dict()), f"the copy has other tensors: {report}")
    require(told["difference"] == 0, f"the copy answers otherwise: {report}")


def mixed_precision_is_close(config: DetectorConfig) -> None:
    """In bf16 the answers are 32-bit numbers near those of full precision."""
    detector = _built(config)
    images, padding = _canvas(SIZES)
    full = _answers(detector, images, padding)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = _answers(detector, images, padding)
    require(mixed.boxes.dtype == mixed.logits.dtype == torch.float32, f"boxes are {mixed.boxes.dtype}")
    # Which proposals are chosen jumps where their scores tie; the proposals themselves do not.
    one, other = (
        (full, mixed) if full.proposals is None or mixed.proposals is None else (full.proposals, mixed.proposals)
    )
    difference = float((one.boxes - other.boxes).abs().max())
    require(difference < BF16, f"a box moves by {difference:.2g} in bf16")


DETECTOR_LAWS: tuple[DetectorLaw, ...] = (
    sections_cover_the_state,
    it_says_what_it_is,
    any_image_size_is_answered,
    padding_is_not_looked_at,
    images_do_not_see_each_other,
    answers_are_repeatable,
    groups_do_not_see_each_other,
    gradient_reaches_every_section,
    images_without_objects_teach,
    weights_come_back,
    an_export_is_proven,
    mixed_precision_is_close,
)
"""All laws of detectors."""


def _built(config: DetectorConfig, seed: int = 0) -> Detector:
    """Return a fresh detector in evaluation mode; weights that its backbone would be given are left out."""
    if backbone_of(config) is not None:
        config = override(config, {"backbone.weights": None})
    torch.manual_seed(seed)
    return config.build().eval()


def _canvas(
    sizes: "list[tuple[int, int]] | tuple[tuple[int, int], ...]", seed: int = 0
) -> tuple[UInt8[Tensor, "B 3 H W"], Bool[Tensor, "B H W"]]:
    """Return images of some sizes on one canvas."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8)
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for row, (rows, columns) in enumerate(sizes):
        padding[row, :rows, :columns] = False
    return images.masked_fill(padding[:, None], 0), padding


def _queries(detector: Detector, count: int, seed: int) -> Queries:
    """Return drawn queries for two images."""
    generator = torch.Generator().manual_seed(seed)
    content, position = (torch.randn(2, count, detector.width, generator=generator) for _ in range(2))
    return Queries(content=content, position=position)


@torch.no_grad()
def _answers(
    detector: Detector, images: UInt8[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"] | None
) -> Predictions:
    found: Predictions = detector(detector.normalise(images, padding), padding)
    return found


def _loss(detector: Detector, objects: int) -> Float[Tensor, ""]:
    images, padding = _canvas(SIZES)
    boxes = torch.tensor([[0.5, 0.4, 0.3, 0.2], [0.3, 0.6, 0.2, 0.4], [0.7, 0.5, 0.4, 0.6]])[:objects]
    targets = [Targets(boxes=boxes, labels=torch.zeros(objects, dtype=torch.int64)) for _ in SIZES]
    criterion = set_prediction(_Weights(), no_object_weight=0.1)
    return criterion(detector(detector.normalise(images, padding), padding), targets).total


class _Weights:
    class_weight, box_l1_weight, box_giou_weight = 1.0, 5.0, 2.0


def _same(one: Predictions, other: Predictions, broken: str) -> None:
    for name in ("logits", "boxes"):
        difference = float((getattr(one, name) - getattr(other, name)).abs().max())
        require(difference < CLOSE, f"{name} differ by {difference:.2g}: {broken}")
