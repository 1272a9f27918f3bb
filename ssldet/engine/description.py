"""Run, training images -> what checkpoints and weights files state about themselves, as plain values."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssldet.engine.run import Run
from ssldet.recipe import fingerprint, to_document
from ssldet.source import Source

SCHEMA = 1
"""Version of the header of weights files."""


def stated(source: Source) -> dict[str, Any]:
    """Return what checkpoints and weights files state about the training images.

    Args:
        source: The training images of a run.
    """
    return {
        "classes": list(source.classes),
        "category_ids": list(source.category_ids),
        "fingerprint": source.fingerprint,
        "images": len(source),
    }


def describe(run: Run, data: Mapping[str, Any], step: int, lineage: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return what a weights file states about itself.

    Args:
        run: The run that made it.
        data: What is stated of its training images; their classes become the file's.
        step: Optimiser steps done.
        lineage: The earlier stages that the run started from, see `stages`.
    """
    document = _without_folders(to_document(run))
    # Where the images lay is nobody's business who gets the file.
    choices = {name: value for name, value in document.items() if name not in {"task", "detector", "data"}}
    return {
        "schema": SCHEMA,
        "task": document["task"],
        "detector": document["detector"],
        "classes": data["classes"],
        "category_ids": data["category_ids"],
        "step": step,
        "recipe": fingerprint(run),
        "data": data["fingerprint"],
        "images": data["images"],
        "choices": choices,
        "lineage": [dict(stage) for stage in lineage],
    }


def _without_folders(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a run in which a file of the backbone's weights has its name only."""
    backbone = document["detector"].get("backbone")
    if isinstance(backbone, dict) and Path(str(backbone.get("weights"))).is_absolute():
        name = Path(backbone["weights"]).name
        return document | {"detector": document["detector"] | {"backbone": backbone | {"weights": name}}}
    return document


def stages(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how a model came to be, the earliest stage first, from what its file states.

    Args:
        info: See `describe`.
    """
    kept = ("task", "detector", "step", "recipe", "data", "images", "choices")
    own = {name: info[name] for name in kept if name in info}
    return [*info.get("lineage", ()), own]
