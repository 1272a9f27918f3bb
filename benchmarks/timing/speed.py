"""What ssldet does in a fast way, against the plain one: `python -m benchmarks speed`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import hardware
from benchmarks.timing.clock import Ratio, ratio, write
from benchmarks.timing.floors import beside_memory
from benchmarks.timing.handing_over import measure_handing_over
from benchmarks.timing.huggingface import left_out, measure_huggingface
from benchmarks.timing.sets import measure_sets
from benchmarks.timing.training import measure_checkpoint, measure_engine, measure_steps
from benchmarks.timing.views import measure_drafts, measure_views
from downstream.annotations.shapes import write_shapes
from downstream.metrics.coco_engines import Columns, Numbers, by_hotcoco, by_pycocotools
from ssldet.boxes import cxcywh_to_xyxy, elementwise_giou
from ssldet.data.memory import keep_freed_memory
from ssldet.errors import ConfigError, suggest
from ssldet.matching import BoxGIoUCost, BoxL1Cost, Matcher, PaddedTargets
from ssldet.nn.backbones import BackboneConfig, build_backbone
from ssldet.nn.backbones.kept import DiskStore, KeptLevels
from ssldet.nn.deformable import Levels, sample_by_bags, sample_by_grid
from ssldet.regular import read_text
from ssldet.types import Predictions, Targets

CLASSES = 80
SCORED = """
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
labels = COCO({labels!r})
evaluation = COCOeval(labels, labels.loadRes({found!r}), "bbox")
evaluation.evaluate()
evaluation.accumulate()
evaluation.summarize()
"""
"""What somebody writes who scores a file of detections without this package."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured.

    Attributes:
        images: Images of the evaluation, each with 100 detections.
        folder: An existing folder for generated data.
        repeats: Rounds of the short measurements. As many as were recorded, to compare with them.
    """

    images: int
    folder: Path
    repeats: int = 5


def measure(out: Path, amount: Amount, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Measure part after part on one thread of the CPU, and write after each row.

    Args:
        out: JSON file to write; rows of parts that are not measured now stay in it.
        amount: How much.
        only: Names of parts; empty measures all.

    Yields:
        One row for each pair; for a part whose other side is not installed, one that says what to install, and nothing
        is written.

    Raises:
        ConfigError: There is no such part.
    """
    if wrong := [f"--only: no part {name!r}{suggest(name, list(PARTS))}" for name in only if name not in PARTS]:
        raise ConfigError(wrong)
    _settle()
    missing = {name: words for name in only or PARTS if (words := PEERS[name]() if name in PEERS else "")}
    kept: list[dict[str, Any]] = json.loads(read_text(out))["results"] if out.exists() else []
    stays = [name for name in PARTS if name not in (only or PARTS) or name in missing]
    rows = {name: [row for row in kept if row["part"] == name and name in stays] for name in PARTS}
    machine = {**hardware(), "threads": 1, "torch": torch.__version__}
    yield from ({"part": name, "left_out": words} for name, words in missing.items())
    for name in only or PARTS:
        for row in PARTS[name](amount) if name not in missing else ():
            rows[name].append({"part": name, **row.to_json(), "load": round(os.getloadavg()[0], 1)})
            write(out, machine, [row for part in rows.values() for row in part])
            yield rows[name][-1]


def fallen(recorded: Path, amount: Amount, parts: Sequence[str] = ()) -> list[str]:
    """Measure again what takes seconds, and return a line for each ratio that fell by a third; nothing is written.

    Args:
        recorded: JSON file of a whole measurement.
        amount: How much is measured.
        parts: Names of parts; empty takes those of `QUICK`.
    """
    _settle()
    before = {row["work"]: row["ratio"] for row in json.loads(read_text(recorded))["results"]}
    best: dict[str, float] = {}
    for name in parts or QUICK:
        for _ in range(ATTEMPTS):
            rows = [row for row in PARTS[name](amount) if row.work in before]
            best |= {row.work: max(row.ratio, best.get(row.work, 0.0)) for row in rows}
            if all(best[row.work] >= LEAST * before[row.work] for row in rows):
                break
    return [
        f"{work}: {ratio:.2f} times as fast as the plain way, which was {before[work]:.2f}"
        for work, ratio in best.items()
        if ratio < LEAST * before[work]
    ]


def _settle() -> None:
    """Take one thread, and have memory that one way frees used again, whichever way came before."""
    torch.set_num_threads(1)
    keep_freed_memory()


def _evaluation(amount: Amount) -> Iterator[Ratio]:
    images = amount.images
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
    yield ratio((name, by(by_hotcoco)), ("pycocotools", by(by_pycocotools)), 1)


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


def _matching(amount: Amount) -> Iterator[Ratio]:
    for shape in ((6, 4, 100, 10), (6, 8, 300, 40)):
        yield from _matching_of(shape, amount.repeats)


def _matching_of(shape: tuple[int, int, int, int], repeats: int) -> Iterator[Ratio]:
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


def _optimiser(amount: Amount) -> Iterator[Ratio]:
    weights: list[int] = []

    def step(fused: bool) -> Callable[[], object]:
        network = torch.nn.Transformer(256, 8, 6, 6, 2048, batch_first=True)
        weights[:] = [parameter.nbytes for parameter in network.parameters()]
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(network.parameters(), fused=fused or None).step

    note = "on CPUs only with optim.fused=on, because the last digits differ"
    fast, plain = ("AdamW in one pass, 17 million weights", step(True)), ("tensor by tensor", step(False))
    row = ratio(fast, plain, amount.repeats, note)
    # Weights, gradients and both moments are read; weights and moments are written.
    yield beside_memory(row, 7 * sum(weights))


def _sampling(amount: Amount) -> Iterator[Ratio]:
    shapes = ((38, 50), (19, 25), (10, 13), (5, 7))
    maps = [torch.randn(1, 256, *shape) for shape in shapes]
    levels = Levels.of(maps, None)
    places = torch.rand(1, 1000, 8, len(shapes), 4, 2) * levels.sizes.view(-1, 1, 2) - 0.5
    given: Any = (levels.join(maps).contiguous(), places, torch.rand(places.shape[:-1]), levels)
    yield ratio(
        ("deformable sampling for 1000 queries, by bags", lambda: sample_by_bags(*given)),
        ("one grid_sample per level", lambda: sample_by_grid(*given)),
        amount.repeats,
    )


def _sets(amount: Amount) -> Iterator[Ratio]:
    yield from measure_sets(amount.repeats)


def _loader(amount: Amount) -> Iterator[Ratio]:
    yield from measure_handing_over(amount.repeats)


def _views(amount: Amount) -> Iterator[Ratio]:
    yield from measure_views(amount.folder, 2 * amount.repeats)
    yield from measure_drafts(amount.folder, amount.repeats)


def _backbone(amount: Amount) -> Iterator[Ratio]:
    config = BackboneConfig(name="resnet50", frozen_stages=0)
    images = torch.randn(2, 3, 400, 533)
    folding, written = (build_backbone(config).requires_grad_(False).eval() for _ in range(2))
    written.body.register_forward_hook(lambda *_: None)  # a network that is watched is not folded
    yield ratio(
        ("frozen ResNet-50 with its norms folded, two images of 400 x 533", lambda: folding.levels(images)),
        ("as written", lambda: written.levels(images)),
        amount.repeats,
    )
    reading = build_backbone(config).requires_grad_(False).eval()
    reading.kept = KeptLevels(DiskStore(amount.folder / "features", 10**9))
    yield ratio(
        ("last level of frozen ResNet-50 read from disk, two images of 400 x 533", lambda: reading(images)),
        ("computed, with its norms folded", lambda: folding(images)),
        amount.repeats,
        "data.feature_cache, after the first time",
    )


def _step(amount: Amount) -> Iterator[Ratio]:
    yield from measure_steps(amount.folder, min(amount.repeats, 3))


def _engine(amount: Amount) -> Iterator[Ratio]:
    yield from measure_engine(amount.folder, amount.repeats)


def _huggingface(amount: Amount) -> Iterator[Ratio]:
    yield from measure_huggingface(amount.folder, min(amount.repeats, 2))


def _checkpoint(amount: Amount) -> Iterator[Ratio]:
    yield from measure_checkpoint(amount.folder, min(amount.repeats, 3))


def _processes(amount: Amount) -> Iterator[Ratio]:
    """Time whole processes, which begin with imports."""

    def fresh(*arguments: str) -> Callable[[], object]:
        command = [sys.executable, *arguments]
        return lambda: subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own

    torch_alone = ("import torch in a fresh process", fresh("-c", "import torch"))
    shapes = amount.folder / "shapes"
    labels = write_shapes(shapes, images=16, size=64)
    out = (str(amount.folder / f"run-{number}") for number in count())
    found = amount.folder / "found.json"
    found.write_text(json.dumps(_random_detections(labels)), encoding="utf-8")
    first_step = ["pretrain", str(shapes), "--recipe", "random_query_patch/tiny", "--steps", "1", "--val", "none"]
    scored = SCORED.format(labels=str(labels), found=str(found))
    repeats = min(amount.repeats, 3)
    yield ratio(("ssldet --help", fresh("-m", "ssldet", "--help")), torch_alone, repeats)
    yield ratio(("import ssldet", fresh("-c", "import ssldet")), torch_alone, repeats)
    yield ratio(("import ssldet; ssldet.pretrain", fresh("-c", "import ssldet; ssldet.pretrain")), torch_alone, repeats)

    def begin() -> None:
        fresh("-m", "ssldet", *first_step, "--out", next(out))()

    yield ratio(("ssldet pretrain, one step", begin), torch_alone, repeats)
    evaluate = fresh("-m", "ssldet", "evaluate", "--predictions", str(found), "--data", f"coco:{labels}")
    yield ratio(
        ("ssldet evaluate --predictions, 16 images", evaluate),
        ("a script of pycocotools", fresh("-c", scored)),
        repeats,
        "ours imports PyTorch, the script does not",
    )


def _random_detections(labels: Path) -> list[dict[str, Any]]:
    document, chance = json.loads(read_text(labels)), np.random.default_rng(0)
    categories = [one["id"] for one in document["categories"]]
    return [
        {
            "image_id": image["id"],
            "category_id": int(chance.choice(categories)),
            "bbox": [float(value) for value in chance.uniform((0, 0, 5, 5), (30, 30, 30, 30))],
            "score": float(chance.random()),
        }
        for image in document["images"]
        for _ in range(50)
    ]


PARTS: dict[str, Callable[[Amount], Iterator[Ratio]]] = {
    "views": _views,
    "loader": _loader,
    "backbone": _backbone,
    "matching": _matching,
    "sets": _sets,
    "optimiser": _optimiser,
    "sampling": _sampling,
    "processes": _processes,
    "step": _step,
    "engine": _engine,
    "checkpoint": _checkpoint,
    "huggingface": _huggingface,
    "evaluation": _evaluation,
}
"""Name -> what is measured, in order."""
PEERS: dict[str, Callable[[], str]] = {"huggingface": left_out}
"""Part -> what to install, as far as the other side is missing."""
QUICK = ("views", "matching")
"""Parts that take seconds."""
LEAST = 0.8
"""Share of a recorded ratio that a new one must reach in one of some attempts.

After a fall by a third, 0.67 is left; the recorded ratio and the new one may so be wrong by a fifth together, in either
direction, before a fall goes unseen or noise is taken for one.
"""
ATTEMPTS = 6
