"""RUN | FILE -> a model that can be used: ours, DETR's, detectron2's and transformers', told apart by content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssldet.detectors.base import Detector, DetectorConfig
from ssldet.engine.checkpoint import load_exactly, restore_objective
from ssldet.engine.folder import RunFolder
from ssldet.errors import CheckpointError, suggest
from ssldet.recipe import from_document, to_document
from ssldet.registry import find
from ssldet.task import Objective, Task
from ssldet.weights.cache import cached
from ssldet.weights.coco import STUFF, coco_numbering
from ssldet.weights.detectron2 import for_detectron2, has_our_names, stated_about
from ssldet.weights.detr import detector_from_state
from ssldet.weights.files import Origin, read_state
from ssldet.weights.huggingface import CONFIG, detector_from_folder, is_folder_of_transformers
from ssldet.weights.zoo import known_detectors


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model with what its file says of it.

    Attributes:
        objective: The detector inside the task that taught it.
        task: That task.
        classes: Class names in the order of the labels; empty where the model was never shown any.
        info: Everything else that the file states.
    """

    objective: Objective
    task: Task
    classes: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


def open_model(start: str | Path) -> Opened:
    """Open a run folder, a weights file or a folder of Hugging Face transformers.

    Args:
        start: A run folder, a file of ours, a DETR or UP-DETR checkpoint, a checkpoint that detectron2 wrote of either,
            or a folder with a DETR of transformers.

    Raises:
        CheckpointError: Nothing is there, or it can't be read or recognised.
    """
    if is_folder_of_transformers(Path(start)):
        return _open_folder(Path(start))
    path = weights_file(start)
    if path.suffix == ".safetensors" and not for_detectron2(path):
        objective, info = restore_objective(path)
        taught = from_document(Task, info["task"])  # type: ignore[type-abstract]
        return Opened(objective=objective.eval(), task=taught, classes=tuple(info["classes"]), info=info)
    state, origin = read_state(path)
    return _open_detectron2(state, origin) if has_our_names(state) else _open_detr(state, origin)


def _open_detectron2(state: dict[str, Tensor], origin: Origin) -> Opened:
    info = stated_about(origin)
    task = from_document(Task, info["task"])  # type: ignore[type-abstract]
    config = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    objective = task.objective(config.build())
    load_exactly(objective, state, str(origin.path))
    return Opened(objective=objective.eval(), task=task, classes=tuple(info["classes"]), info=info)


def _open_detr(state: dict[str, Tensor], origin: Origin) -> Opened:
    detector, heads, config, stated = detector_from_state(state, origin)
    classes, category_ids = ((), ()) if heads else coco_numbering(detector.num_classes)
    classes, category_ids = tuple(stated.get("classes", classes)), tuple(stated.get("category_ids", category_ids))
    task: Task
    if "task" in stated:
        task = from_document(Task, stated["task"])  # type: ignore[type-abstract]
    elif heads:
        rebuilds = any(name.startswith("reconstruction.") for name in heads)
        task = find("ssldet.tasks", "random_query_patch")(reconstruction=rebuilds)
    else:
        task = _published_task(detector, category_ids)()
    objective = task.objective(detector)
    own = {f"detector.{name}": tensor for name, tensor in detector.state_dict().items()}
    load_exactly(objective, own | heads, str(origin.path))
    info = {
        "task": to_document(task),
        "detector": config,
        "classes": list(classes),
        "category_ids": list(category_ids),
    }
    return Opened(objective=objective.eval(), task=task, classes=classes, info=info)


def _open_folder(path: Path) -> Opened:
    found = detector_from_folder(path)
    known, category_ids = coco_numbering(len(found.classes))
    category_ids = tuple(found.stated.get("category_ids", category_ids if known == found.classes else ()))
    # Whoever trained the model on with transformers may have changed the sizes, which go before what we wrote.
    sizes = {"eval_scale": found.short_side, "max_size": found.long_side}
    if stated := found.stated.get("task"):
        document = stated | {name: size for name, size in sizes.items() if name in stated}
        task = from_document(Task, document)  # type: ignore[type-abstract]
    else:
        task = _sized(_published_task(found.detector, category_ids), found.short_side, found.long_side)
    info = {
        "task": to_document(task),
        "detector": to_document(found.config),
        "classes": list(found.classes),
        "category_ids": list(category_ids),
    }
    objective = task.objective(found.detector).eval()
    return Opened(objective=objective, task=task, classes=found.classes, info=info)


def _published_task(detector: Detector, category_ids: Sequence[int]) -> Callable[..., Any]:
    """Return what makes the task of a published detector: detection, or panoptic where it draws masks."""
    if not detector.sections.get("mask_head"):
        kind: Callable[..., Any] = find("ssldet.tasks", "detection")
        return kind
    stuff = tuple(label for label, key in enumerate(category_ids) if key in STUFF)
    return partial(find("ssldet.tasks", "panoptic"), stuff=stuff)


def _sized(detection: Callable[..., Any], short_side: int, long_side: int) -> Task:
    """Return the detection task that sees images in the size that a model was made for."""
    scales = [scale for scale in detection().scales if scale <= long_side]
    sized: Task = detection(eval_scale=short_side, max_size=long_side, scales=tuple(scales or [short_side]))
    return sized


def load(start: str | Path) -> Detector:
    """Return the detector of a run or a file as a plain `nn.Module`, in evaluation mode.

    Args:
        start: A run folder, a file of ours, or a DETR or UP-DETR checkpoint.
    """
    return open_model(start).objective.detector


def weights_file(start: str | Path) -> Path:
    """Return the weights file that a run folder, a file name or the name of a published detector stands for.

    Raises:
        CheckpointError: There is none; the message says why and what is near.
    """
    path = Path(start)
    if path.is_dir():
        folder = RunFolder(path)
        if folder.weights.is_file():
            return folder.weights
        if folder.checkpoints.is_dir():
            raise CheckpointError(f"{path}: the run has not finished; {folder.resume_command(folder.run())}")
        raise CheckpointError(
            f"{path}: neither a run folder (it has no weights/{folder.weights.name}) nor one of transformers "
            f"(it has no {CONFIG}); name one of them, or a weights file"
        )
    if not path.exists():
        if (known := known_detectors()).get(str(start)):
            return cached(known[str(start)])
        siblings = [*known, *(other.name for other in path.parent.iterdir())] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such run or file{suggest(path.name, siblings)}")
    return path


def pick_device(name: str = "auto") -> torch.device:
    """Return the device to compute on; `auto` takes an accelerator where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
