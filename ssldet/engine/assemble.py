"""Run -> Objective: the detector with its first weights, inside the task that will teach it."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssldet.chance import generator, seed_of
from ssldet.data.collate import collate
from ssldet.detectors.base import Detector, backbone_of
from ssldet.engine.run import Run
from ssldet.errors import UnreadableError
from ssldet.nn.backbones import Backbone, calibrate
from ssldet.source import Source
from ssldet.task import Objective
from ssldet.types import Sample
from ssldet.weights.backbone import load_backbone

log = logging.getLogger(__name__)

CALIBRATION_IMAGES, CALIBRATION_PIXELS = 256, 4_000_000
"""Enough for the mean and deviation of every channel; more costs time and changes neither."""


def assemble(run: Run, source: Source, documents: dict[str, Mapping[str, Any]] | None = None) -> Objective:
    """Build what a run trains; the same run and images always give the same first weights.

    Args:
        run: The run.
        source: Its training images: a backbone without weights of its own takes its normalisation from them, because
            frozen norms that never saw an image would scale nothing.
        documents: JSON files for the run folder, by name; the report on the backbone's weights is put among them.

    Raises:
        CheckpointError: The backbone's weights can't be had or don't fit.
    """
    torch.manual_seed(seed_of(run.seed, "init"))
    detector = run.detector.build()
    if (config := backbone_of(run.detector)) is not None:
        backbone = detector.get_submodule("backbone")
        assert isinstance(backbone, Backbone)
        if config.weights is not None:
            report = load_backbone(backbone, config.weights, architecture=config.name, coverage=config.coverage)
            log.info("%s", report)
            if documents is not None:
                documents["backbone.json"] = report.to_json()
        elif not backbone.keeps_weights:
            calibrate(backbone, _first_images(run, detector, source))
    return run.task.objective(detector)


def _first_images(run: Run, detector: Detector, source: Source) -> Float[Tensor, "B 3 H W"]:
    batch = collate(list(_small_samples(run, source)))
    return detector.normalise(batch.images, batch.padding)


def _small_samples(run: Run, source: Source) -> Iterator[Sample]:
    """Yield samples from all over the source, as evaluation sees them, until there are pixels enough."""
    views, pixels = run.task.views(training=False), 0
    step = max(1, len(source) // CALIBRATION_IMAGES)
    for number, index in enumerate(range(0, len(source), step)):
        if number >= CALIBRATION_IMAGES or pixels > CALIBRATION_PIXELS:
            return
        try:
            sample = views(source[index], generator(run.seed, "calibrate", index))
        except UnreadableError:
            # Training goes round this file and counts it.
            continue
        pixels += sample.image[0].numel()
        yield sample
