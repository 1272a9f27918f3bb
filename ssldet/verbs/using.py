"""RUN | FILE -> numbers, pictures, other people's formats: what one does with a trained model."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ssldet.data.loader import evaluation_batches
from ssldet.data.sources import open_source
from ssldet.engine.run import DataConfig
from ssldet.errors import ConfigError, DataError
from ssldet.registry import find, names
from ssldet.report.pictures import draw_answers, draw_detections
from ssldet.types import Batch, Detections, Source
from ssldet.verbs.opening import Opened, open_model, pick_device

log = logging.getLogger(__name__)


class Exported(Protocol):
    """What an exporter says when it is done; printing it shows the proof."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        ...


def evaluate(
    start: str | Path | None,
    data: str | Sequence[str],
    *,
    predictions: str | Path | None = None,
    save_predictions: str | Path | None = None,
    batch_size: int = 1,
    workers: int = 2,
) -> dict[str, Any]:
    """Measure a model, or a file of predictions without any model.

    Args:
        start: A run folder or a weights file; none where `predictions` is given.
        data: `coco:ANN.json:IMAGES` or `voc:ROOT:SPLIT`; plain images for a pretext task.
        predictions: A COCO results file to score.
        save_predictions: Where to write the detections as a COCO results file.
        batch_size: Images at a time; padding changes results a little, so 1 is the reference.
        workers: Loader processes.

    Returns:
        The metrics by name; `per_class` holds a number for each class.
    """
    specs = (data,) if isinstance(data, str) else tuple(data)
    if predictions is not None:
        if start is not None or len(specs) != 1:
            raise ConfigError("--predictions scores one results file against one --data; leave the model out")
        return dict(_scorer(specs[0])(Path(predictions), specs[0]))
    if start is None:
        raise ConfigError("nothing to evaluate; name a run folder, a weights file, or --predictions FILE")
    opened = open_model(start)
    source = _open(specs)
    evaluator = opened.task.evaluator(source)
    results: list[dict[str, Any]] = []
    for batch, found in _detect(opened, source, batch_size, workers):
        evaluator.update(found, batch)
        if save_predictions is not None:
            results += source.to_results(found, batch)  # type: ignore[attr-defined]
    if save_predictions is not None:
        Path(save_predictions).write_text(json.dumps(results), encoding="utf-8")
    return dict(evaluator.results())


def predict(
    start: str | Path,
    images: str | Sequence[str],
    *,
    query: str | Sequence[str] = (),
    out: str | Path | None = None,
    threshold: float = 0.5,
) -> dict[str, Any]:
    """Detect in images, or find where a patch came from; write pictures and `predictions.json`.

    Args:
        start: A run folder or a weights file.
        images: Folders, globs, file lists or single files.
        query: Patch images to look for (a pretrained model only; the paper's Figure 5).
        out: Folder for the pictures and the file; none takes `predictions`.
        threshold: Least confidence that is drawn. The file holds every detection.

    Returns:
        `out`, the number of `images`, and `predictions` in COCO results format.
    """
    opened = open_model(start)
    source = _open((images,) if isinstance(images, str) else images)
    queries = _open((query,) if isinstance(query, str) else query) if query else None
    if queries is not None and not hasattr(opened.objective, "localise"):
        raise ConfigError("--query asks a model that was pretrained to find patches; this one was fine-tuned")
    folder = Path(out or "predictions")
    folder.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for batch, found in _detect(opened, source, 1, 0, queries):
        results += _results(found[0], batch.keys[0], opened.classes)
        _draw(opened, source, batch, found[0], threshold, queries).save(folder / f"{_file_name(batch.keys[0])}.png")
    (folder / "predictions.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return {"out": str(folder), "images": len(source), "predictions": results}


def export(start: str | Path, *, to: str, out: str | Path) -> Exported:
    """Write a detector in another format, load it back and prove that it is the same.

    Args:
        start: A run folder or a weights file.
        to: An exporter's name.
        out: File to create.

    Raises:
        CheckpointError: The format can't hold this detector, or what came back differs.
    """
    exporter = find("ssldet.exporters", to)
    opened = open_model(start)
    report: Exported = exporter(opened.objective, opened.info, Path(out))
    return report
