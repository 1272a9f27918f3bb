"""Run: the whole configuration of an experiment, which recipes return and `run.toml` stores."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ssldet.data.bands import RGB
from ssldet.data.images import ImageRules
from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.recipe import Within, dumps
from ssldet.report.notebook import card
from ssldet.task import Task

Precision = Literal["auto", "32", "bf16"]
"""Precision of a model: 32 bits, or bfloat16 where that is safe; boxes, costs and losses always have 32 bits. `auto` is
settled before a run begins, by its device, and its record states what it was: see `ssldet.engine.devices.settled`."""

HEADLINE = "headline"
"""The measure that a task is known by, whatever its name."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images of a run, and how they are read.

    Attributes:
        train: Data specifications: folders, globs, file lists, `coco:ANN.json:IMAGES`, `voc:ROOT:SPLIT`,
            `yolo:ROOT:SPLIT`.
        val: Specifications to evaluate on; empty evaluates on what is held out, if anything is.
        held_out: Share of the training images, 200 at most, that is evaluated on and not trained on; none where `val`
            names others. See `ssldet.data.holding_out`. `None` leaves it to the verb: `pretrain` holds out one image in
            20 where `val` is empty, all others hold out none.
        unlabelled: Specifications of further images whose labels are never read, for tasks that learn from both kinds.
        unlabelled_ratio: Unlabelled images of a batch for each labelled one.
        fraction: Share of the training images that is used; with one seed, a smaller share is a subset of a larger one.
        shots: Objects of each class in the training images, of which only so many are taken; 0 takes them all. An image
            is taken whole, so that classes which lie beside others get more. Seeds as for `fraction`.
        fraction_seed: Seed of the choice of these images.
        batch_size: Images of one optimiser step, over all ranks and accumulated parts together, unlabelled ones
            included.
        workers: Loader processes per rank; the result does not depend on it.
        canvas_multiple: Sides of the canvas of a training batch are multiples of this many pixels. An accelerator plans
            the convolutions of each new size anew; with few sizes, as 32 or 64 give, it does so less often.
        views_per_image: How many different views of an image training shows, the first of them again after the last; 0
            draws a new one in every epoch.
        feature_cache: Gigabytes that the features of a frozen backbone may take on disk, in `SSLDET_HOME`, where they
            are read instead of computed when an image is shown again; 0 keeps none. Needs `views_per_image`.
        max_bad_fraction: Largest share of unusable files that a run skips; above it the run stops.
        min_side: Shortest usable image side in pixels; shorter images count as bad.
        max_pixels: Largest usable image in pixels, checked before decoding.
        draft: Pixels of the short side that are enough for training without labels: JPEGs are decoded at an eighth, a
            quarter or a half of their size where that many are left, which is faster for large photos and changes
            pixels; 0 decodes them whole.
        channels: Channels of the images; other than three are read from TIFF (also of 16 bits) and `.npy` as they are,
            for tasks that can do without colours.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    held_out: Annotated[float, Within(0, 0.5)] | None = None
    unlabelled: tuple[str, ...] = ()
    unlabelled_ratio: Annotated[int, Within(1, 1024)] = 1
    fraction: Annotated[float, Within(1e-6, 1)] = 1.0
    shots: Annotated[int, Within(0, 1_000_000)] = 0
    fraction_seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    batch_size: Annotated[int, Within(1, 65_536)] = 32
    workers: Annotated[int, Within(0, 256)] = 2
    canvas_multiple: Annotated[int, Within(1, 1024)] = 1
    views_per_image: Annotated[int, Within(0, 2**31)] = 0
    feature_cache: Annotated[float, Within(0, 1e6)] = 0.0
    max_bad_fraction: Annotated[float, Within(0, 1)] = 0.001
    min_side: Annotated[int, Within(1)] = ImageRules.min_side
    max_pixels: Annotated[int, Within(1)] = ImageRules.max_pixels
    draft: Annotated[int, Within(0, 65_536)] = 0
    channels: Annotated[int, Within(1, 1024)] = ImageRules.channels

    @property
    def indivisible(self) -> int:
        """Images that a batch can't be split between: a labelled one and the unlabelled ones that come with it."""
        return 1 + self.unlabelled_ratio if self.unlabelled else 1

    @property
    def rules(self) -> ImageRules:
        """Which images are usable."""
        return ImageRules(min_side=self.min_side, max_pixels=self.max_pixels, channels=self.channels)

    @property
    def measured_on(self) -> list[str]:
        """What results were measured on, as `run.json` says it; empty where nothing is measured."""
        return list(self.val) or ([f"held out: {self.held_out:g} of data.train"] if self.held_out else [])


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule.

    Attributes:
        optimizer: `adamw`, `sgd` with momentum, or `lars`, SGD with a rate per tensor, for large batches.
        momentum: Momentum of `sgd` and `lars`; not used by `adamw`.
        lr: Peak learning rate of the transformer and the heads.
        lr_backbone: Peak learning rate of the backbone.
        lr_sampling_factor: Factor of `lr` for the layers that say where deformable attention looks
            (`Detector.sampling_layers`); it changes nothing for detectors without such layers.
        weight_decay: Weight decay of every parameter, norms and biases included; decoupled in AdamW.
        schedule: `step` multiplies by `drop_factor` at each of `drops`; `cosine` decays to zero; `constant` stays.
        drops: Points of the budget (0..1) at which `step` drops.
        drop_factor: Factor of the learning rate at each drop.
        warmup_steps: Steps of linear warm-up from zero.
        clip: Largest norm of the whole gradient; zero switches clipping off.
        accumulate: Parts in which the batch of one step is computed, to save memory.
        ema: Decay of the averaged weights that are evaluated and handed over; zero switches averaging off.
        ema_ramp: Slowness with which the decay rises to `ema`: after t steps it is (1 + t) / (`ema_ramp` + t) at most,
            so that the average follows closely at first; zero takes `ema` from the start.
        fused: Whether AdamW and SGD update all tensors in one pass: on GPUs (`auto`) or on CPUs too (`on`), where the
            last digits then differ. LARS has no such form.
    """

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    momentum: Annotated[float, Within(0, 0.9999)] = 0.9
    lr: Annotated[float, Within(0)] = 1e-4
    lr_backbone: Annotated[float, Within(0)] = 1e-5
    lr_sampling_factor: Annotated[float, Within(0)] = 1.0
    weight_decay: Annotated[float, Within(0)] = 1e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    drops: tuple[float, ...] = (2 / 3,)
    drop_factor: Annotated[float, Within(0, 1)] = 0.1
    warmup_steps: Annotated[int, Within(0)] = 0
    clip: Annotated[float, Within(0)] = 0.1
    accumulate: Annotated[int, Within(1, 65_536)] = 1
    ema: Annotated[float, Within(0, 0.999999)] = 0.0
    ema_ramp: Annotated[float, Within(0, 1e6)] = 0.0
    fused: Literal["auto", "on"] = "auto"

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        if self.schedule == "step" and not all(0 < drop < 1 for drop in self.drops):
            return [f"drops: {self.drops} must lie between 0 and 1, as fractions of the budget"]
        return []


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Length of training, in epochs or in steps.

    Attributes:
        epochs: Passes over the training set; ignored where `steps` is given.
        steps: Optimiser steps.
        patience: Evaluations in a row without a better `checkpoint.best_of`, after which the run ends early; none never
            ends it early.
    """

    epochs: Annotated[float, Within(1e-6, 1e9)] | None = None
    steps: Annotated[int, Within(1)] | None = None
    patience: Annotated[int, Within(1)] | None = None

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        if self.epochs is None and self.steps is None:
            return ["epochs: set budget.epochs or budget.steps"]
        return []

    def total_steps(self, images: int, batch_size: int) -> int:
        """Return the number of optimiser steps for a set of this many images.

        Args:
            images: Training images.
            batch_size: Images of one step, over all ranks and accumulated parts together.
        """
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * images / batch_size))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept.

    Attributes:
        every_steps: Steps between saves; the end of a run and a stop signal always save.
        keep: Newest checkpoints to keep, at least two, so that there is another one if the newest is damaged.
        best_of: Measure whose largest value on `data.val` marks the best weights, which are kept beside the last, such
            as `AP50`; `headline` takes the one that the task is known by; none keeps no best.
    """

    every_steps: Annotated[int, Within(1)] = 1000
    keep: Annotated[int, Within(2, 1_000_000)] = 2
    best_of: str | None = HEADLINE


@dataclass(frozen=True, kw_only=True)
class Run:
    """The whole configuration of an experiment.

    Attributes:
        task: The task that the detector is trained on.
        detector: The detector.
        data: Training and validation images.
        optim: The optimiser and its schedule.
        budget: Length of training.
        checkpoint: When checkpoints are saved.
        seed: The only source of randomness: order, augmentation, initial weights and dropout are functions of it.
        precision: `32`, or `bf16` for mixed precision; boxes, costs and losses are always computed in 32 bits. `auto`
            is `bf16` on a GPU that computes in it and `32` elsewhere; it is settled at the start and stays.
        deterministic: Use deterministic algorithms on an accelerator too, which are slower.
        log_every: Steps between lines of the metrics file.
        evaluate_every: Steps between evaluations on `data.val`; zero evaluates at the end only.
        preview_every: Steps between preview pictures; zero draws one at the start and one at the end.
        loggers: Names of loggers that get every line of the metrics file too; see `ssldet list loggers`.
        health: Images on which a pretext run is checked beside each evaluation: do they still differ to the network?
            See `ssldet.engine.health`; zero checks none.
        device: `auto` (`cuda` where there is such a device, else `cpu`), `cpu`, `cuda` or, not tested yet, `mps`.
        devices: Number of devices on this machine; zero takes all that can share a batch equally, on a CPU one process.
            A launcher such as torchrun decides itself.
    """

    task: Task
    detector: DetectorConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    budget: Budget
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    precision: Precision = "auto"
    deterministic: bool = False
    log_every: Annotated[int, Within(1)] = 10
    evaluate_every: Annotated[int, Within(0)] = 0
    preview_every: Annotated[int, Within(0)] = 0
    loggers: tuple[str, ...] = ()
    health: Annotated[int, Within(0, 100_000)] = 200
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Within(0, 65_536)] = 0

    def total_steps(self, images: int) -> int:
        """Return the number of optimiser steps for a set of this many images.

        Args:
            images: Training images.
        """
        return self.budget.total_steps(images, self.data.batch_size)

    def _repr_html_(self) -> str:
        """Show the choices in a notebook, all of them when asked for."""
        rows = {
            "task": type(self.task).__name__,
            "detector": type(self.detector).__name__,
            "images": ", ".join(self.data.train) or "not yet named",
            "length": f"{self.budget.epochs:g} epochs" if self.budget.steps is None else f"{self.budget.steps} steps",
            "batch": f"{self.data.batch_size} images a step",
        }
        return card("Run", rows=rows, details={"every choice": dumps(self)})

    def problems(self) -> list[str]:
        """Return contradictions between fields, one line each."""
        wrong = [f"task.{line}" for line in self.task.problems_with(self.detector)]
        if self.data.batch_size % self.optim.accumulate:
            wrong.append(
                f"optim.accumulate: a batch of {self.data.batch_size} can't be split into {self.optim.accumulate} "
                "equal parts; choose a divisor"
            )
        elif self.data.batch_size % (self.optim.accumulate * self.data.indivisible):
            wrong.append(
                f"data.batch_size: {self.data.batch_size} images in {self.optim.accumulate} parts hold no whole groups "
                f"of 1 labelled and {self.data.unlabelled_ratio} unlabelled; choose a multiple of "
                f"{self.optim.accumulate * self.data.indivisible}"
            )
        wrong += self._unmet_needs()
        if self.budget.patience is not None:
            needed = {
                "data.val names no images to measure on": self.data.measured_on,
                "evaluate_every is 0, so that nothing is measured before the end": self.evaluate_every,
                "checkpoint.best_of is none": self.checkpoint.best_of,
            }
            wrong += [f"budget.patience: {reason}; set it too" for reason, given in needed.items() if not given]
        return wrong

    def _unmet_needs(self) -> list[str]:
        """Return what the task needs of the rest of the run and does not get, and what it gets in vain."""
        needs, name = self.task.needs, type(self.task).__name__
        wrong = []
        if self.data.unlabelled and not needs.unlabelled:
            wrong.append(
                f"data.unlabelled: {name} does not learn from unlabelled images beside its own; leave them out, or "
                "choose a recipe of self_training"
            )
        if self.data.draft and needs.labels:
            wrong.append(f"data.draft: {name} reads labels, and their images are decoded whole; leave it at 0")
        if self.data.channels != RGB and needs.colours:
            wrong.append(f"data.channels: {name} looks at red, green and blue; leave it at 3, or choose another task")
        backbone = backbone_of(self.detector)
        if self.data.channels != (RGB if backbone is None else backbone.channels):
            takes = "takes 3" if backbone is None else f"was built for {backbone.channels}"
            wrong.append(
                f"data.channels: images have {self.data.channels}, and the detector {takes}; start from one for these "
                "images, or from scratch"
            )
        if self.data.feature_cache and not self.data.views_per_image:
            wrong.append(
                "data.feature_cache: a new view of an image is drawn in every epoch, so that no feature would be "
                "needed again; set data.views_per_image to a number of views"
            )
        if self.data.feature_cache and not self.task.rests("backbone"):
            wrong.append(
                f"data.feature_cache: {name} trains the backbone, whose features change; freeze it, or leave it at 0"
            )
        if needs.average and not self.optim.ema:
            wrong.append(f"optim.ema: {name} learns from averaged weights, and 0 averages none; set it, to .99 or more")
        return wrong
