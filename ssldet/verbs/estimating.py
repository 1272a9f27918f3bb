"""recipe, number of images and devices -> steps, hours, memory and disk, each with where it is from; no data needed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssldet.data.loader import require_equal_shares
from ssldet.engine.features import GIGABYTE
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.recipe import check, override
from ssldet.verbs.choosing import changes_of, resolve
from ssldet.verbs.planning import Sizes, in_words
from ssldet.verbs.speed import committed, measure

ASSUMPTION = (
    "all devices work at the speed of one, and gradients, evaluations and reading images cost nothing on top: a lower "
    "bound"
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take.

    Attributes:
        recipe: Its name.
        images: Training images.
        devices: Number of devices.
        batch_size: Images of one step, over all devices.
        share: Images that each device computes at once.
        steps: Optimiser steps.
        epochs: Passes over the images.
        images_per_second: Of one device; `None` where nobody has measured it.
        speed_source: Where that is from, or why it is not known.
        hours: Duration; `None` where the speed is not known.
        assumption: How the speed of one device was scaled.
        state: Bytes of weights, gradients, optimiser and averaged weights on each device, counted.
        gigabytes: Most memory of a device, activations included; `None` where nobody has measured it.
        memory_source: Where that is from.
        disk: Most bytes of checkpoints and weights, counted.
        features_disk: Most bytes that features of a frozen backbone may take on top; zero where none are kept.
    """

    recipe: str
    images: int
    devices: int
    batch_size: int
    share: int
    steps: int
    epochs: float
    images_per_second: float | None
    speed_source: str
    hours: float | None
    assumption: str
    state: int
    gigabytes: float | None
    memory_source: str
    disk: int
    features_disk: int

    def __str__(self) -> str:
        """Return a line per subject, with the source of each figure."""
        step = f"{self.batch_size} images, {self.share} on each of {self.devices} devices at once"
        step = step if self.devices > 1 else f"{self.batch_size} images, {self.share} at once"
        speed = f"not known: {self.speed_source}"
        time = "not known, since the speed is not"
        if self.images_per_second is not None and self.hours is not None:
            speed = f"{self.images_per_second:.3g} images/s on one device ({self.speed_source})"
            time = f"{_duration(self.hours)} (assumed: {self.assumption})"
        memory = f"{in_words(self.state)} for weights and optimiser (counted); activations not measured"
        if self.gigabytes is not None:
            memory = f"{self.gigabytes:.1f} GB on each device ({self.memory_source})"
        disk = f"at most {in_words(self.disk)} for checkpoints and weights (counted)"
        if self.features_disk:
            disk += f"; at most {in_words(self.features_disk)} for features of the backbone (data.feature_cache)"
        rows = {
            "recipe": self.recipe,
            "length": f"{self.steps:,} steps: {self.epochs:.3g} passes over {self.images:,} images (from the recipe)",
            "step": step,
            "speed": speed,
            "time": time,
            "memory": memory,
            "disk": disk,
        }
        return "\n".join(f"{name:<7}  {text}" for name, text in rows.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def plan(
    recipe: str | Path | Run,
    *,
    images: int,
    devices: int = 1,
    measured: bool = False,
    steps: int | None = None,
    epochs: float | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Estimate:
    """Say what a recipe would take on so many images and devices, without any images; nothing is written.

    Args:
        recipe: A recipe's name, a record, or a `Run`.
        images: Training images.
        devices: Devices, over all machines.
        measured: Take a few steps here and time them, instead of reading the committed measurement of a GPU.
        steps: Length in steps; `None` keeps the recipe's.
        epochs: Length in passes over the images; likewise.
        overrides: Dotted recipe fields and their values.

    Returns:
        Every figure with its source; what nobody measured is not known, and said so.

    Raises:
        ConfigError: With every problem of the configuration.
        SetupError: The device of a measurement is not there.
    """
    wrong = [
        f"{name}: {value} must be 1 or more"
        for name, value in (("--images", images), ("--devices", devices))
        if value < 1
    ]
    if wrong:
        raise ConfigError(wrong)
    run = override(resolve(recipe), changes_of((), (), steps, epochs, overrides))
    check(run)
    require_equal_shares(run.data.batch_size, devices, run.optim.accumulate, run.data.indivisible)
    share = run.data.batch_size // (devices * run.optim.accumulate)
    speed = measure(run, share) if measured else committed(run, share)
    total, sizes = run.total_steps(images), Sizes.of(run, measures=bool(run.data.val))
    return Estimate(
        recipe=str(recipe) if not isinstance(recipe, Run) else "your own",
        images=images,
        devices=devices,
        batch_size=run.data.batch_size,
        share=share,
        steps=total,
        epochs=total * run.data.batch_size / images,
        images_per_second=None if speed is None else speed.images_per_second,
        speed_source=_UNMEASURED if speed is None else speed.source,
        hours=None if speed is None else total * run.data.batch_size / (speed.images_per_second * devices) / 3600,
        assumption=ASSUMPTION,
        state=sizes.memory,
        gigabytes=None if speed is None else speed.gigabytes,
        memory_source="" if speed is None else speed.memory_source,
        disk=sizes.disk,
        features_disk=int(run.data.feature_cache * GIGABYTE),
    )


_UNMEASURED = "no measurement of a GPU is committed for such a recipe; --measured takes a few steps on this machine"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.3g} minutes"
    return f"{hours:.3g} hours" if hours < 48 else f"{hours:,.0f} hours, {hours / 24:.3g} days"
