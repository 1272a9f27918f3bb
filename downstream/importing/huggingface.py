"""folder of Hugging Face transformers -> Opened: as the task that it states, else like DETR's own files."""

from dataclasses import replace

from downstream.detection import Detection
from downstream.importing.detr import published_task
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
        CheckpointError: It is incomplete or damaged, or holds another architecture.
    """
    found = detector_from_folder(candidate.path)
    known, category_ids = coco_numbering(len(found.classes))
    category_ids = tuple(found.stated.get("category_ids", category_ids if known == found.classes else ()))
    task = _task(found, category_ids)
    info = {
        "task": to_document(task),
        "detector": to_document(found.config),
        "classes": list(found.classes),
        "category_ids": list(category_ids),
    }
    objective = task.objective(found.detector).eval()
    return Opened(objective=objective, task=task, classes=found.classes, info=info)


def _task(found: FromFolder, category_ids: tuple[int, ...]) -> Task:
    """Return the task that sees images in the sizes of the folder.

    Whoever trained the model on with transformers may have changed them, so they go before those that we stated.
    """
    sizes = {"eval_scale": found.short_side, "max_size": found.long_side}
    if stated := found.stated.get("task"):
        document = stated | {name: size for name, size in sizes.items() if name in stated}
        task: Task = from_document(Task, document)  # type: ignore[type-abstract]
        return task
    published: Detection = published_task(masks=found.config.masks, category_ids=category_ids)(**sizes)
    scales = tuple(scale for scale in published.scales if scale <= found.long_side) or (found.short_side,)
    return replace(published, scales=scales)


def _is_folder(candidate: Candidate) -> bool:
    return is_folder_of_transformers(candidate.path)


IMPORTER = Importer(
    reads=f"folders of Hugging Face transformers with a DETR ({CONFIG})",
    recognises=_is_folder,
    open=open_folder,
    general=True,
)
