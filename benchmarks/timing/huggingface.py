"""DETR here and in transformers -> steps of fine-tuning and answers of both, from the same weights, pixels and labels.

What both compute is compared first: answers, the loss over all decoder layers, and how many weights learn. Images lie
in memory, and both drop the same shares. Ours also normalises pixels, checks that a step is finite, and makes
detections; theirs gets normalised pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from benchmarks.timing.bench import Bench, Trainer
from benchmarks.timing.clock import Ratio, compared
from benchmarks.timing.floors import beside_a_product, flops_of
from benchmarks.timing.turns import Worker, in_workers
from ssldet.data.collate import collate
from ssldet.engine.evaluate import at_rest
from ssldet.engine.run import Run
from ssldet.errors import SetupError
from ssldet.recipe import override, to_document
from ssldet.registry import find
from ssldet.types import Batch, Sample, Targets
from ssldet.weights.huggingface_names import BODY

PEER = "transformers' DETR"
SIZES = (800, 1066), (750, 1000)
"""Height and width of the images of a batch; the second one is padded."""
CLASSES, OBJECTS = 91, 7
ALLOWED = 1e-4
"""Largest difference of an answer, and of the loss as a share of it."""
Way = Callable[[], Callable[[], object]]
"""Makes, in the process that does it, a function that does some work once."""


def left_out() -> str:
    """Return what to install where transformers is missing, or an empty text."""
    return "" if find_spec("transformers") else "transformers is not installed; pip install 'ssldet[huggingface]'"


def measure_huggingface(folder: Path, repeats: int) -> Iterator[Ratio]:
    """Yield how many times faster our step of fine-tuning and our answer are, each way in a process of its own.

    Args:
        folder: An existing folder for generated images.
        repeats: Rounds.
    """
    bench = Bench(device=torch.device("cpu"), until=math.inf, tiny=False, folder=folder)
    for count in range(1, len(SIZES) + 1):
        pair = Pair(bench, SIZES[:count])
        of = f"DETR, ResNet-50, batch {count}, {SIZES[0][0]} x {SIZES[0][1]}"
        note = "second image padded" if count > 1 else ""
        steps = pair.steps
        for work, ways in (("fine-tuning step", steps), ("inference", pair.answers)):
            rounds = in_workers([Worker(prepare=way) for way in ways.values()], repeats, warming=1)
            row = compared(f"{work} of {of}", f"{PEER} (sdpa)", rounds, note)
            yield beside_a_product(row, flops_of(ways["ours"]())) if ways is steps else row


class Pair:
    """A DETR of ours, its copy in transformers, and a batch for both.

    Attributes:
        trainer: Takes our steps.
        theirs: The copy, in training mode.
        batch: Random pixels and labels, on the device.
    """

    def __init__(self, bench: Bench, sizes: Sequence[tuple[int, int]]) -> None:
        """Draw weights and images, and compare what both compute.

        Args:
            bench: Where to compute, and how large a network.
            sizes: Height and width of each image.

        Raises:
            SetupError: The two programs compute different things.
        """
        self.trainer = Trainer(_run(bench), bench.device)
        self.batch = _batch(sizes).to(bench.device)
        self.theirs = _copy_of(self.trainer).to(bench.device).train()
        self._compare()

    @property
    def steps(self) -> dict[str, Way]:
        """What makes a function that takes a step of fine-tuning."""
        return {"ours": lambda: partial(self.trainer.step, self.batch), "theirs": self._their_step}

    @property
    def answers(self) -> dict[str, Way]:
        """What makes a function that answers the images: ours with detections, theirs with logits and boxes."""
        return {"ours": lambda: self._answer, "theirs": lambda: self._their_answer}

    def _their_step(self) -> Callable[[], object]:
        """Return a step of theirs, by the optimiser of ours with one rate for all weights."""
        optim, learning = self.trainer.run.optim, _learning(self.theirs)
        optimizer = torch.optim.AdamW(learning, lr=optim.lr, weight_decay=optim.weight_decay)

        def step() -> None:
            optimizer.zero_grad()
            self.theirs(**self._given, labels=self._labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, optim.clip)
            optimizer.step()

        return step

    def _answer(self) -> None:
        with at_rest(self.trainer.objective, self.batch.images.device, "32"):
            self.trainer.objective.answer(self.batch)

    @torch.no_grad()
    def _their_answer(self) -> None:
        self.theirs.eval()(**self._given)

    @cached_property
    def _given(self) -> dict[str, Tensor]:
        detector, padding = self.trainer.objective.detector, self.batch.padding
        return {"pixel_values": detector.normalise(self.batch.images, padding), "pixel_mask": (~padding).long()}

    @cached_property
    def _labels(self) -> list[dict[str, Tensor]]:
        return [{"class_labels": one.labels, "boxes": one.boxes} for one in self.batch.targets]

    def _compare(self) -> None:
        """Compare answers, losses and the number of weights that learn; without dropout, which each draws anew."""
        objective: Any = self.trainer.objective
        with at_rest(objective, self.batch.images.device, "32"):
            ours, losses = objective.ask(self.batch), objective(self.batch)
            theirs = self.theirs.eval()(**self._given, labels=self._labels)
        self.theirs.train()
        differences = {
            "logits": _difference(ours.logits[-1], theirs.logits),
            "boxes": _difference(ours.boxes[-1], theirs.pred_boxes),
            "loss": _difference(losses.total, theirs.loss) / float(theirs.loss),
            "learning weights": abs(_count(objective.detector) - _count(self.theirs)),
        }
        if apart := [f"{name} differ by {value:.2g}" for name, value in differences.items() if value > ALLOWED]:
            raise SetupError(f"transformers computes something else than DETR here: {', '.join(apart)}")


def _run(bench: Bench) -> Run:
    """Return the recipe for DETR's own detector, fresh, in 32 bits; how many images it has decides nothing here."""
    run: Run = find("ssldet.recipes", "detection/r50")()
    fixed = {
        "data.train": (bench.images(2, 64, 1),),
        "data.workers": 0,
        "precision": "32",
        "budget.steps": 1000,
        "detector.backbone.weights": "none",
        "detector.num_classes": CLASSES,
        "detector.pre_norm": False,
    }
    small = {
        "detector.backbone.name": "resnet18",
        "detector.width": 64,
        "detector.feedforward": 128,
        "detector.encoder_layers": 2,
        "detector.decoder_layers": 2,
        "detector.num_queries": 10,
    }
    return override(run, {**fixed, **(small if bench.tiny else {})})


def _batch(sizes: Sequence[tuple[int, int]]) -> Batch:
    """Return random pixels with random boxes on them."""
    chance = torch.Generator().manual_seed(0)
    samples = [
        Sample(
            image=torch.randint(256, (3, *size), generator=chance, dtype=torch.uint8),
            targets=Targets(
                boxes=0.2 + 0.3 * torch.rand(OBJECTS, 4, generator=chance),
                labels=torch.randint(CLASSES, (OBJECTS,), generator=chance),
            ),
            key=str(number),
            original_size=size,
        )
        for number, size in enumerate(sizes)
    ]
    return collate(samples)


def _copy_of(trainer: Trainer) -> Any:
    """Return transformers' detector with our weights, by the exporter; it also learns from every decoder layer."""
    from downstream.export.huggingface import export

    library: Any = import_module("transformers")
    library.utils.logging.disable_progress_bar()
    with TemporaryDirectory() as place:
        folder = Path(place) / "detr"
        export(trainer.objective, {"detector": to_document(trainer.run.detector)}, folder)
        choices = {"attn_implementation": "sdpa", "auxiliary_loss": True, "local_files_only": True}
        copy = library.DetrForObjectDetection.from_pretrained(folder, **choices)
    own = trainer.objective.detector.named_parameters()
    resting = tuple(f"model.{name.removeprefix(BODY)}" for name, weights in own if not weights.requires_grad)
    for name, weights in copy.named_parameters():  # it lets all of a network of timm learn, DETR the later stages alone
        weights.requires_grad_(not name.endswith(resting))
    return copy


def _learning(network: Module) -> list[Parameter]:
    return [weights for weights in network.parameters() if weights.requires_grad]


def _count(network: Module) -> int:
    return sum(weights.numel() for weights in _learning(network))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
