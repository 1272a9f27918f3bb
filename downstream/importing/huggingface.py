"""folder of Hugging Face transformers -> `Opened`, as the task that it states, or else like DETR's own files."""

from dataclasses import replace

from downstream.detection import Detection
from downstream.importing.detr import published_task
from ssldet.detectors.detr import DETRConfig
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.recipe import from_document, to_document
from ssldet.task import Task
from ssldet.weights.coco import coco_numbering
from ssldet.weights.huggingface import CONFIG, FromFolder, detector_from_folder, is_folder_of_transformers


def open_folder(candidate: Candidate) -> Opened:
    """Build the detector in a folder of transformers.

    Args:
        candidate: A folder with `config.json`.

    Raises:
        CheckpointError: The folder is incomplete or damaged, or holds another architecture.
    """
    folder = detector_from_folder(candidate.path)
    coco_classes, category_ids = coco_numbering(len(folder.classes))
    category_ids = tuple(folder.stated.get("category_ids", category_ids if coco_classes == folder.classes else ()))
    task = _task(folder, category_ids)
    info = {
        "task": to_document(task),
        "detector": to_document(folder.config),
        "classes": list(folder.classes),
        "category_ids": list(category_ids),
    }
    objective = task.objective(folder.detector).eval()
    return Opened(objective=objective, task=task, classes=folder.classes, info=info)


def _task(folder: FromFolder, category_ids: tuple[int, ...]) -> Task:
    """Return the task with the image sizes of the folder.

    Further training with transformers may have changed the sizes, so they take precedence over those that we wrote.
    """
    images = folder.processor
    sizes = {
        "eval_scale": images.short_side,
        "max_size": images.long_side,
        "eval_rule": images.rule,
        "eval_size": images.size,
    }
    if stated := folder.stated.get("task"):
        known = {"eval_rule", "eval_size", *stated} if "eval_scale" in stated else set()
        document = stated | {name: size for name, size in sizes.items() if name in known}
        task: Task = from_document(Task, document)  # type: ignore[type-abstract]
        return task
    masks = isinstance(folder.config, DETRConfig) and folder.config.masks
    published: Detection = published_task(masks=masks, category_ids=category_ids)(**sizes)
    scales = tuple(scale for scale in published.scales if scale <= images.long_side) or (images.short_side,)
    return replace(published, scales=scales)


def _is_folder(candidate: Candidate) -> bool:
    return is_folder_of_transformers(candidate.path)


IMPORTER = Importer(
    reads=f"folders of Hugging Face transformers with a DETR or a Deformable DETR ({CONFIG})",
    recognises=_is_folder,
    open=open_folder,
    general=True,
)
