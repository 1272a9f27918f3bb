"""objective, what its file states -> model card: what the model is, how it came to be, and what one owes to whom."""

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
    """Return what a file in somebody else's format says in our own words, so that we open it as what it was.

    Args:
        info: What is known of the model.
        whole: Whether the file has all tensors of its task; only then can the task be built from it again.
    """
    wanted = ("task", "classes", "category_ids") if whole else ("classes", "category_ids")
    return {name: info[name] for name in wanted if name in info}


def model_card(objective: Objective, info: Mapping[str, Any], use: str) -> Callable[[ExportReport], str]:
    """Return what writes the card once the export is proven.

    Args:
        objective: The model that is exported.
        info: What is known of it: task, detector, classes, and the stages that it went through.
        use: How the exported file is used, as Markdown.
    """
    stages = [*info.get("lineage", ()), info]

    def write(report: ExportReport) -> str:
        return HEAD.format(
            title=f"{_word(info.get('detector'))}: {_word(info.get('task'))}",
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
    yield f"- Detector: {_word(info.get('detector'))}, {detector.num_queries} queries, width {detector.width}, "
    yield f"  {sum(value.numel() for value in detector.state_dict().values()):,} numbers"
    yield f"- Backbone: {info.get('detector', {}).get('backbone', {}).get('name', 'unknown')}"
    yield f"- Classes: {', '.join(classes) if classes else 'none named'}"
    yield f"- Size: {report.size / 1e6:.1f} MB"


def _stage(number: int, stage: Mapping[str, Any]) -> str:
    """Tell one stage: its task, its data, and every choice as a recipe."""
    if "recipe" not in stage:
        return f"{number}. {_word(stage.get('task'))}. {FOREIGN}"
    told = {name: stage[name] for name in ("task", "detector") if name in stage} | dict(stage.get("choices", {}))
    line = (
        f"{number}. {_word(stage.get('task'))}, {stage.get('step', 0):,} steps on {stage.get('images', '?'):,} images "
        f"(data fingerprint `{stage.get('data')}`, recipe fingerprint `{stage['recipe']}`)"
    )
    return f"{line}\n\n```toml\n{tomli_w.dumps(told).strip()}\n```"


def _terms(stages: list[Mapping[str, Any]]) -> Iterator[str]:
    for stage in stages:
        backbone = stage.get("detector", {}).get("backbone", {})
        weights = backbone.get("weights", "none")
        if weights != "none":
            yield f"backbone weights `{backbone.get('name')}.{weights}` ({_licence(backbone.get('name'), weights)})."
    yield IMAGES if any("recipe" in stage for stage in stages) else FOREIGN


def _licence(backbone: str, weights: str) -> str:
    """Return the licence of named weights; a file of the user's own has none that is known."""
    try:
        return known_weights(weights, backbone).licence
    except CheckpointError:
        return "licence unknown"


def _word(document: Any) -> str:
    return str(document.get("name", "unknown")) if isinstance(document, Mapping) else "unknown"
