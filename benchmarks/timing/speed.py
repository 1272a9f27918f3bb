"""What ssldet does in a fast way, against the plain one: `python -m benchmarks speed`."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing.clock import Ratio, ratio, write
from downstream.metrics.coco_engines import Columns, Numbers, by_hotcoco, by_pycocotools
from ssldet.boxes import cxcywh_to_xyxy, elementwise_giou
from ssldet.matching import BoxGIoUCost, BoxL1Cost, Matcher, PaddedTargets
from ssldet.nn.deformable import Levels, sample_by_bags, sample_by_grid
from ssldet.types import Predictions, Targets

CLASSES = 80


def measure(out: Path, *, images: int = 5000, repeats: int = 5) -> list[Ratio]:
    """Measure every pair on one thread of the CPU, writing after each.

    Args:
        out: JSON file to write.
        images: Images of the evaluation, each with 100 detections.
        repeats: Rounds of the short measurements.
    """
    torch.set_num_threads(1)
    machine = {"device": "cpu", "threads": 1, "torch": torch.__version__, "python": sys.version.split()[0]}
    rows: list[Ratio] = []
    for row in _rows(images, repeats):
        rows.append(row)
        write(out, machine, [one.to_json() for one in rows])
    return rows


def _rows(images: int, repeats: int) -> Iterator[Ratio]:
    yield _evaluation(images)
    for shape in ((6, 4, 100, 10), (6, 8, 300, 40)):
        yield from _matching(shape, repeats)
    yield _optimiser(repeats)
    yield _sampling(repeats)
    yield _imports(repeats)


def _evaluation(images: int) -> Ratio:
    chance = np.random.default_rng(0)
    objects = _columns(chance, images, 7, None)
    found = _columns(chance, images, 100, objects)
    numbers = Numbers(
        images={n: n for n in range(1, images + 1)},
        categories={n: n for n in range(1, CLASSES + 1)},
        sizes=[(480, 640)] * images,
    )

    def by(engine: Callable[..., object]) -> Callable[[], object]:
        return lambda: engine(numbers, objects, found, "bbox", [1, 10, 100])

    name = f"AP of {images} images with 100 detections each"
    return ratio((name, by(by_hotcoco)), ("pycocotools", by(by_pycocotools)), 1)


def _columns(chance: np.random.Generator, images: int, each: int, near: Columns | None) -> Columns:
    """Return random objects or, near those, detections."""
    image = np.repeat(np.arange(1, images + 1), each)
    boxes = chance.uniform((0, 0, 5, 5), (400, 300, 240, 180), (len(image), 4))
    categories = chance.integers(1, CLASSES + 1, len(image))
    if near is not None:
        shown = len(near) // images
        chosen = (image - 1) * shown + chance.integers(0, shown, len(image))
        boxes = (near.boxes[chosen] + chance.normal(0, 8, boxes.shape)).clip(0.1)
        categories = np.where(chance.random(len(image)) < 0.7, near.categories[chosen], categories)
    return Columns(
        images=image,
        categories=categories,
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        masks=None,
        scores=chance.random(len(image)),
        crowd=np.zeros(len(image), np.int64),
    )


def _matching(shape: tuple[int, int, int, int], repeats: int) -> Iterator[Ratio]:
    layers, batch, queries, targets = shape
    predictions = Predictions(
        logits=torch.randn(layers, batch, queries, CLASSES + 1),
        boxes=torch.rand(layers, batch, queries, 4) * 0.5 + 0.2,
        states=torch.zeros(layers, batch, queries, 2),
    )
    padded = PaddedTargets(
        boxes=torch.rand(batch, targets, 4) * 0.5 + 0.2, labels=torch.randint(CLASSES, (batch, targets))
    )
    wanted = [Targets(boxes=boxes, labels=labels) for boxes, labels in zip(padded.boxes, padded.labels, strict=True)]

    def in_pairs(predictions: Predictions, padded: PaddedTargets) -> torch.Tensor:
        boxes, others = cxcywh_to_xyxy(predictions.boxes), cxcywh_to_xyxy(padded.boxes)
        pairs = (layers, batch, queries, targets, 4)
        return -elementwise_giou(boxes.unsqueeze(-2).expand(pairs), others.unsqueeze(-3).expand(pairs))

    class Plain(BoxGIoUCost):
        def __call__(self, predictions: Predictions, targets: PaddedTargets) -> torch.Tensor:
            return in_pairs(predictions, targets)

    place = "{} layers, {} images, {} queries, {} targets".format(*shape)
    fast, plain = Matcher(), Matcher([*Matcher().costs[:2], Plain(weight=2.0)])
    yield ratio(
        (f"overlap cost: {place}", lambda: BoxGIoUCost()(predictions, padded)),
        ("pairs of boxes side by side", lambda: in_pairs(predictions, padded)),
        4 * repeats,
    )
    yield ratio(
        (f"matcher: {place}", lambda: fast(predictions, wanted)),
        ("the same with pairs of boxes side by side", lambda: plain(predictions, wanted)),
        4 * repeats,
    )
    yield ratio(
        (f"distance cost: {place}", lambda: BoxL1Cost()(predictions, padded)),
        (
            "difference of all pairs, which accelerators use",
            lambda: (predictions.boxes.unsqueeze(-2) - padded.boxes.unsqueeze(-3)).abs().sum(-1),
        ),
        4 * repeats,
    )


def _optimiser(repeats: int) -> Ratio:
    def step(fused: bool) -> Callable[[], object]:
        network = torch.nn.Transformer(256, 8, 6, 6, 2048, batch_first=True)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(network.parameters(), fused=fused or None).step

    note = "on CPUs only with optim.fused=on, because the last digits differ"
    return ratio(
        ("AdamW in one pass, 17 million weights", step(True)), ("tensor by tensor", step(False)), repeats, note
    )


def _sampling(repeats: int) -> Ratio:
    shapes = ((38, 50), (19, 25), (10, 13), (5, 7))
    maps = [torch.randn(1, 256, *shape) for shape in shapes]
    levels = Levels.of(maps, None)
    places = torch.rand(1, 1000, 8, len(shapes), 4, 2) * levels.sizes.view(-1, 1, 2) - 0.5
    given: Any = (levels.join(maps).contiguous(), places, torch.rand(places.shape[:-1]), levels)
    return ratio(
        ("deformable sampling for 1000 queries, by bags", lambda: sample_by_bags(*given)),
        ("one grid_sample per level", lambda: sample_by_grid(*given)),
        repeats,
    )


def _imports(repeats: int) -> Ratio:
    def fresh(code: str) -> Callable[[], object]:
        return lambda: subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-c", code], check=True
        )

    note = "1 would mean that nothing but torch is imported before a verb runs"
    return ratio(
        ("ssldet.pretrain in a fresh process", fresh("import ssldet; ssldet.pretrain")),
        ("import torch in a fresh process", fresh("import torch")),
        min(repeats, 3),
        note,
    )
