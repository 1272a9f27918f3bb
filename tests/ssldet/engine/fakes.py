"""A world small enough to train in milliseconds, with every kind of chance that a real one has.

Order, augmentation, first weights and dropout all matter to the result, so a run that repeats, drops or re-draws
anything ends in other bits.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ssldet.class_scores import SoftmaxScores
from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.engine.run import Budget, CheckpointConfig, DataConfig, OptimConfig, Run
from ssldet.errors import DivergedError, UnreadableError
from ssldet.source import Source
from ssldet.task import Objective, PretextTask, Views
from ssldet.types import Batch, Detections, Losses, Predictions, Queries, Sample, Skipped, Targets


class FakeSource(Source):
    """Noise images by number; `skipped` as given, `bad` ones can't be read."""

    classes = ("cat", "dog")

    def __init__(self, count: int, *, bad: Sequence[int] = (), skipped: int = 0, salt: str = "") -> None:
        self.count, self.bad, self.salt = count, frozenset(bad), salt
        self._skipped = tuple(Skipped(path=f"scan-{n}.jpg", reason="empty") for n in range(skipped))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self._skipped

    @property
    def fingerprint(self) -> str:
        return f"fake-{self.count}-{self.salt}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise UnreadableError(f"image-{index}.jpg", "truncated")
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)
        boxes = torch.rand(index % 3, 4, generator=generator)
        targets = Targets(boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64))
        return Sample(image=image, targets=targets, key=f"image-{index}", original_size=(8, 8))


SECTIONS = ("backbone", "projection", "encoder", "decoder", "queries", "box_head", "class_head")


class FakeDetector(Detector):
    """All sections but the mask head, one small layer each."""

    def __init__(self, num_classes: int, num_queries: int) -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.width, self.feature_channels = num_classes, num_queries, 6, 4
        self.sections = {name: (name,) for name in SECTIONS}
        self.scores = SoftmaxScores()
        self.backbone = nn.Conv2d(3, 4, 3, stride=4)
        self.projection = nn.Linear(4, 6)
        self.encoder = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2))
        self.decoder = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.2))
        self.queries = nn.Embedding(num_queries, 6)
        self.box_head = nn.Linear(6, 4)
        self.class_head = nn.Linear(6, num_classes + 1)

    def normalise(self, pixels: Tensor, padding: Tensor | None = None) -> Tensor:
        return pixels.float() / 255 - 0.5

    def features(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def default_queries(self, batch_size: int) -> Queries:
        position = self.queries.weight.expand(batch_size, -1, -1)
        return Queries(content=torch.zeros_like(position), position=position)

    def forward(self, images: Tensor, padding: Tensor | None = None, queries: Queries | None = None) -> Predictions:
        memory = self.encoder(self.projection(self.features(images).mean((2, 3))))
        asked = queries or self.default_queries(len(images))
        states = self.decoder(asked.position + memory[:, None])[None]
        return Predictions(logits=self.class_head(states), boxes=self.box_head(states).sigmoid(), states=states)


@dataclass(frozen=True, kw_only=True)
class FakeDetectorConfig(DetectorConfig):
    """Builds a `FakeDetector`."""

    num_classes: int = 2
    num_queries: int = 3

    def build(self) -> FakeDetector:
        return FakeDetector(self.num_classes, self.num_queries)


class FakeObjective(Objective):
    """Pulls boxes to the image's mean colour; can misbehave at will."""

    def __init__(self, detector: Detector, task: "FakeTask") -> None:
        super().__init__()
        self.detector, self.task = detector, task
        self.scale = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> Losses:
        if self.task.refuse in batch.keys:
            raise DivergedError("cost of layer 0 is not finite")
        images = self.detector.normalise(batch.images)
        predictions = self.detector(images)
        wanted = images.mean((1, 2, 3)).sigmoid()[:, None, None]
        distance = (predictions.boxes.float() - wanted).abs().mean((1, 2, 3))
        if self.task.poison in batch.keys:
            distance = distance * float("nan")
        classes = predictions.logits.float().square().mean((1, 2, 3)) * self.scale.weight.sum() ** 2
        losses = Losses(
            terms={"box": distance, "class": classes},
            weights={"box": 5.0, "class": 0.1},
            metrics={"spread": predictions.boxes.detach().float().std()},
        )
        if self.task.record:
            line = f"{','.join(batch.keys)} {losses.total.item().hex()}\n".encode()
            descriptor = os.open(self.task.record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, line)
            os.close(descriptor)
        return losses

    def answer(self, batch: Batch) -> list[Detections]:
        boxes = self.detector(self.detector.normalise(batch.images)).boxes[-1].float()
        label = torch.zeros(boxes.shape[1], dtype=torch.int64)
        return [Detections(boxes=found * 8, scores=found[:, 0], labels=label) for found in boxes]


class FakeEvaluator:
    """Counts images and averages scores; remembers what it was shown."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.keys: list[str] = []

    def update(self, detections: list[Detections], batch: Batch) -> None:
        for found in detections:
            if not bool(torch.isfinite(found.boxes).all()):
                raise DivergedError("a box is not finite")
        self.keys += batch.keys
        self.scores += [float(found.scores.mean()) for found in detections]

    def results(self) -> dict[str, float | dict[str, float]]:
        assert len(set(self.keys)) == len(self.keys)
        return {
            "score": sum(self.scores) / len(self.scores),
            "images": float(len(self.keys)),
            "per_class": {"cat": 0.5},
        }


def noisy(sample: Sample, generator: torch.Generator) -> Sample:
    """Augmentation: add noise."""
    noise = torch.randint(0, 64, sample.image.shape, generator=generator, dtype=torch.uint8)
    return replace(sample, image=(sample.image // 2 + noise))


def clean(sample: Sample, generator: torch.Generator) -> Sample:
    """No augmentation."""
    return sample


@dataclass(frozen=True, kw_only=True)
class FakeTask(PretextTask):
    """Trains everything but the backbone unless told otherwise.

    `record` receives a line for every executed forward. `poison` names the image whose loss is NaN, `refuse` the one
    that has no loss at all.
    """

    cite: ClassVar[str] = "none"
    headline: ClassVar[str] = "score"
    learn: tuple[str, ...] = ("projection", "encoder", "decoder", "queries", "box_head", "class_head")
    record: str = ""
    poison: str = ""
    refuse: str = ""

    def rests(self, section: str) -> bool:
        return section not in self.learn

    def stays_behind(self, section: str) -> bool:
        return section not in self.learn

    def views(self, *, training: bool = True) -> Views:
        return noisy if training else clean

    def objective(self, detector: Detector) -> FakeObjective:
        return FakeObjective(detector, self)

    def evaluator(self, source: Any) -> FakeEvaluator:
        return FakeEvaluator()


def a_run(**changes: Any) -> Run:
    """A run of 12 steps on 10 images, 4 a step; keys of the `Run`, or of its parts with two underscores."""
    parts: dict[str, dict[str, Any]] = {}
    for name in list(changes):
        if "__" in name:
            part, field = name.split("__")
            parts.setdefault(part, {})[field] = changes.pop(name)
    run = Run(
        task=FakeTask(),
        detector=FakeDetectorConfig(),
        data=DataConfig(train=("fake:10",), batch_size=4, workers=0),
        optim=OptimConfig(lr=1e-2, lr_backbone=1e-3),
        budget=Budget(steps=12),
        checkpoint=CheckpointConfig(every_steps=2),
        log_every=1,
        health=0,
        device="cpu",
        precision="32",
    )
    for part, fields in parts.items():
        run = replace(run, **{part: replace(getattr(run, part), **fields)})
    return replace(run, **changes)


def open_fake(specs: Sequence[str], **_: object) -> FakeSource:
    """`fake:COUNT[:SALT]`, `fake:COUNT:bad:1,2`, `fake:COUNT:skipped:3`."""
    words = specs[0].split(":")
    if words[2:3] == ["bad"]:
        return FakeSource(int(words[1]), bad=[int(index) for index in words[3].split(",")])
    if words[2:3] == ["skipped"]:
        return FakeSource(int(words[1]), skipped=int(words[3]))
    return FakeSource(int(words[1]), salt="".join(words[2:]))


def weights_of(folder: Path) -> dict[str, str]:
    """Exact weights that a run handed over, as text."""
    from ssldet.engine.checkpoint import load_weights

    _, state = load_weights(folder / "weights" / "model.safetensors")
    return {name: tensor.numpy().tobytes().hex() for name, tensor in state.items()}
