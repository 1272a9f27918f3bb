"""class head with unused rows -> class head without: COCO's ids have gaps, detectron2's class numbers have none.

The head of 91 classes by COCO's ids becomes a head of 80 classes, that of 250 classes by panoptic COCO's ids one of
133. Only the rows of classes that have a name are kept, in ascending order of the ids, with "no object" last if there
is such a row. Category ids are kept too; nothing is renamed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssldet.detectors.base import DetectorConfig
from ssldet.engine.checkpoint import load_exactly
from ssldet.recipe import from_document, override, to_document
from ssldet.task import Objective, Task
from ssldet.weights.detectron2 import rows_in_use

HEAD = "detector.class_head."


def without_holes(objective: Objective, info: Mapping[str, Any]) -> tuple[Objective, dict[str, Any]]:
    """Return the model with contiguous classes, and its metadata; the same model if its classes are contiguous.

    The kept logits stay the same; their softmax becomes slightly larger, because it runs over fewer classes.

    Args:
        objective: The detector inside its task.
        info: Metadata of the model: task, detector, classes and category ids.
    """
    classes = tuple(info.get("classes", ()))
    rows = rows_in_use(classes, objective.detector.num_classes)
    if rows is None:
        return objective, dict(info)
    *used, no_object = rows
    kept = [*used, *([no_object] if objective.detector.scores.extra_rows else [])]
    number_of = {row: number for number, row in enumerate(used)}
    document = dict(info["task"])
    if "stuff" in document:
        document["stuff"] = [number_of[row] for row in document["stuff"] if row in number_of]
    task = from_document(Task, document)  # type: ignore[type-abstract]
    config: DetectorConfig = from_document(DetectorConfig, info["detector"])  # type: ignore[type-abstract]
    config = override(config, {"num_classes": len(used)})
    smaller = task.objective(config.build())
    heads = {HEAD: kept}
    if getattr(config, "two_stage", False):
        # The first row of the head for proposals tells objects from background, whatever its class is called.
        heads = {f"{HEAD}{getattr(config, 'decoder_layers', 0)}.": [0, *kept[1:]], **heads}
    state = {name: _rows_of(name, value, heads) for name, value in objective.state_dict().items()}
    load_exactly(smaller, state, "the head without holes")
    ids = info.get("category_ids") or ()
    changed = {
        "task": to_document(task),
        "detector": to_document(config),
        "classes": [classes[row] for row in used],
        "category_ids": [ids[row] for row in used] if len(ids) == len(classes) else [],
    }
    return smaller.to(next(objective.parameters()).device).eval(), dict(info) | changed


def _rows_of(name: str, value: Tensor, heads: Mapping[str, list[int]]) -> Tensor:
    """Return the rows of a tensor that are kept, by the first beginning of its name among the heads; else all."""
    rows = next((rows for start, rows in heads.items() if name.startswith(start)), None)
    return value if rows is None else value[rows]
