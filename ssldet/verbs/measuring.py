"""a run that measured nothing, labelled images -> the figures and findings that its report shows."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ssldet.data.sources import open_source
from ssldet.engine.evaluate import evaluate
from ssldet.engine.explaining import explain
from ssldet.engine.folder import RunFolder
from ssldet.engine.sources import prepared
from ssldet.errors import ConfigError, DataError
from ssldet.verbs.opening import open_trained, pick_device

log = logging.getLogger(__name__)


def measure_for_report(path: Path, data: Sequence[str]) -> None:
    """Measure a run that was trained without images to measure on, and note the figures in its folder.

    Args:
        path: The run folder.
        data: As for `ssldet.evaluate`.

    Raises:
        ConfigError: The run measured itself in training; its own figures are not replaced.
        DataError: The images can't be read, or have other classes.
    """
    folder = RunFolder(path)
    status = folder.status()
    if status.get("results"):
        measured = ", ".join(map(str, status.get("measured_on", ())))
        raise ConfigError(
            f"{path}: was measured on {measured or 'images of its own'} already, and the report shows that; measure on "
            f"others with: ssldet evaluate {path} --data {data[0]}"
        )
    run, opened = folder.run(), open_trained(path)
    rules = replace(run.data.rules, channels=opened.objective.detector.in_channels)
    opened_data = open_source(tuple(data), rules, masks=run.task.needs.masks, classes=opened.classes)
    if opened.classes and opened_data.classes != opened.classes:
        raise DataError(
            f"{', '.join(data)}: has the classes {', '.join(opened_data.classes) or 'none'}, and the run "
            f"{', '.join(opened.classes)}; name data with the same ones"
        )
    source = prepared(run.task, opened_data, training=False)
    device = pick_device()
    objective = opened.objective.to(device).eval()
    results = evaluate(run, objective, source, device, explain=partial(explain, source, folder))
    folder.note(results=results, measured_on=list(data), measured_at=status.get("steps"))
    log.info("measured on %d images", len(source))
