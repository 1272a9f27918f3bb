"""Run -> Objective: the detector with its initial weights, inside the objective of the task."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ssldet.chance import generator, seed_of
from ssldet.data.collate import collate
from ssldet.detectors.base import backbone_of
from ssldet.engine.run import Run
from ssldet.errors import UnreadableError
from ssldet.nn.backbones import Backbone, calibrate
from ssldet.source import Source
from ssldet.task import Objective
from ssldet.types import Sample
from ssldet.weights.backbone import load_backbone

log = logging.getLogger(__name__)

CALIBRATION_IMAGES, CALIBRATION_PIXELS = 256, 4_000_000
"""Images and pixels for calibration; more of them would change no channel's mean or deviation."""


def assemble(run: Run, source: Source, documents: dict[str, Mapping[str, Any]] | None = None) -> Objective:
    """Build the objective of a run; the same run and images always give the same initial weights.

    Args:
        run: The configuration.
        source: Its training images: a backbone without weights of its own takes its normalisation from them, because
            frozen norms that never saw an image would scale nothing.
        documents: JSON files for the run folder, by name; the report on the backbone's weights is added to them.

    Raises:
        CheckpointError: The backbone's weights can't be read or don't fit.
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
        # Where none of these images can be read, the loader says so once training asks it for a batch.
        elif not backbone.keeps_weights and (samples := list(_small_samples(run, source))):
            batch = collate(samples)
            calibrate(backbone, detector.normalise(batch.images, batch.padding))
    return run.task.objective(detector)


def _small_samples(run: Run, source: Source) -> Iterator[Sample]:
    """Yield samples spread evenly over the source, with the views of evaluation, up to the limits above."""
    views, pixels = run.task.views(training=False), 0
    step = max(1, len(source) // CALIBRATION_IMAGES)
    for number, index in enumerate(range(0, len(source), step)):
        if number >= CALIBRATION_IMAGES or pixels > CALIBRATION_PIXELS:
            return
        try:
            sample = views(source[index], generator(run.seed, "calibrate", index))
        except UnreadableError:
            # Training skips this file and counts it.
            continue
        pixels += sample.image[0].numel()
        yield sample
