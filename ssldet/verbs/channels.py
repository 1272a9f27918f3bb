"""Run, its images -> the run with a detector for their channels: first convolution, and how pixels are normalised."""

import logging

from torch import Tensor

from ssldet.data.bands import RGB
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.errors import DataError, UnreadableError
from ssldet.nn.backbones.stem import statistics
from ssldet.recipe import override
from ssldet.source import Source

log = logging.getLogger(__name__)

MEASURED = 64
"""Images that statistics are measured on, at most, spread evenly over the set."""


def for_channels(run: Run) -> Run:
    """Return a run whose backbone takes as many channels as its images have.

    Args:
        run: The run as it was asked for.
    """
    backbone = backbone_of(run.detector)
    if run.data.channels == RGB or backbone is None or backbone.channels != RGB:
        return run
    return override(run, {"detector.backbone.channels": run.data.channels})


def normalised(run: Run, source: Source) -> Run:
    """Return a run that states by which numbers pixels are normalised, and say what other channels than three change.

    Args:
        run: A run that passed its checks.
        source: Its training images.

    Raises:
        DataError: Not one image can be read.
    """
    backbone = backbone_of(run.detector)
    if run.data.channels == RGB or backbone is None:
        return run
    told = "as stated"
    if not backbone.mean:
        images = _some_of(source)
        mean, std = statistics(images)
        run = override(run, {"detector.backbone.mean": mean, "detector.backbone.std": std})
        backbone, told = backbone_of(run.detector) or backbone, f"measured on {len(images)} images"
    log.info(
        "images have %d channels: the first convolution of %s takes them, with the weights of red, green and blue over "
        "and over%s; brightness, contrast and blur still vary, colours do not",
        run.data.channels,
        backbone.name,
        "" if not backbone.frozen_stages else ", and stays so unless detector.backbone.frozen_stages=0",
    )
    log.info(
        "pixels are normalised by mean %s and deviation %s, %s", _listed(backbone.mean), _listed(backbone.std), told
    )
    return run


def _some_of(source: Source) -> list[Tensor]:
    images = []
    for index in range(0, len(source), max(1, len(source) // MEASURED)):
        try:
            images.append(source[index].image[:, ::4, ::4])
        except UnreadableError:
            continue  # training counts it
    if not images:
        raise DataError("no image can be read, so that mean and deviation of their channels are not known")
    return images


def _listed(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
