"""objective, what its file states -> model card: what the model is, how it was trained, licences and citations."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tomli_w

from downstream.export.proof import ExportReport
from ssldet.citations import cited
from ssldet.errors import CheckpointError
from ssldet.task import Objective
from ssldet.weights.zoo import known_weights

HEAD = """\
---
library_name: ssldet
license: other
license_name: see-the-section-licence
pipeline_tag: object-detection
tags: [object-detection, detr, self-supervised-learning]
---

# {title}

{what}

## Use

{use}

## How it was made

{made}

## Licence

The code that made this file is Apache-2.0. A model also inherits the terms of what it was made from: {terms}

## Proof

Loaded back after writing and compared with the model itself: {proof}.

## Cite

```bibtex
{cite}
```
"""
FOREIGN = "It was read from a file that does not say how it was trained; its authors' terms apply."
IMAGES = "Terms of the training images and their labels apply, and are not recorded here."


def statement(info: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Return our own metadata for a file in another library's format, so that we can open it again as the same task.

    Args:
        info: Metadata of the model.
        whole: Whether the file has all tensors of its task; only then can the task be built from it again.
    """
    fields = ("task", "classes", "category_ids") if whole else ("classes", "category_ids")
    return {name: info[name] for name in fields if name in info}


def model_card(objective: Objective, info: Mapping[str, Any], use: str) -> Callable[[ExportReport], str]:
    """Return the function that makes the card of a proven export.

    Args:
        objective: The model that is exported.
        info: Metadata of the model: task, detector, classes, and the stages of its training.
        use: How the exported file is used, as Markdown.
    """
    stages = [*info.get("lineage", ()), info]

    def write(report: ExportReport) -> str:
        return HEAD.format(
            title=f"{_name_of(info.get('detector'))}: {_name_of(info.get('task'))}",
            what="\n".join(_what(objective, info, report)),
            use=use,
            made="\n\n".join(_stage(number, stage) for number, stage in enumerate(stages, start=1)),
            terms=" ".join(_terms(stages)),
            proof=report.proof,
            cite=cited(stages),
        )

    return write


def _what(objective: Objective, info: Mapping[str, Any], report: ExportReport) -> Iterator[str]:
    detector = objective.detector
    classes = [name for name in info.get("classes", ()) if name]
    yield f"- Detector: {_name_of(info.get('detector'))}, {detector.num_queries} queries, width {detector.width}, "
    yield f"  {sum(value.numel() for value in detector.state_dict().values()):,} numbers"
    yield f"- Backbone: {info.get('detector', {}).get('backbone', {}).get('name', 'unknown')}"
    yield f"- Classes: {', '.join(classes) if classes else 'none named'}"
    yield f"- Size: {report.size / 1e6:.1f} MB"


def _stage(number: int, stage: Mapping[str, Any]) -> str:
    """Return the description of one stage: its task, its data, and all choices as a recipe."""
    if "recipe" not in stage:
        return f"{number}. {_name_of(stage.get('task'))}. {FOREIGN}"
    recipe = {name: stage[name] for name in ("task", "detector") if name in stage} | dict(stage.get("choices", {}))
    line = (
        f"{number}. {_name_of(stage.get('task'))}, {stage.get('step', 0):,} steps "
        f"on {stage.get('images', '?'):,} images "
        f"(data fingerprint `{stage.get('data')}`, recipe fingerprint `{stage['recipe']}`)"
    )
    return f"{line}\n\n```toml\n{tomli_w.dumps(recipe).strip()}\n```"


def _terms(stages: list[Mapping[str, Any]]) -> Iterator[str]:
    for stage in stages:
        backbone = stage.get("detector", {}).get("backbone", {})
        weights = backbone.get("weights", "none")
        if weights != "none":
            yield f"backbone weights `{backbone.get('name')}.{weights}` ({_licence(backbone.get('name'), weights)})."
    yield IMAGES if any("recipe" in stage for stage in stages) else FOREIGN


def _licence(backbone: str, weights: str) -> str:
    """Return the licence of named weights; that of a user's own file is unknown."""
    try:
        return known_weights(weights, backbone).licence
    except CheckpointError:
        return "licence unknown"


def _name_of(document: Any) -> str:
    return str(document.get("name", "unknown")) if isinstance(document, Mapping) else "unknown"
