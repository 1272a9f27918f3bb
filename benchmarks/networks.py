"""run of a recipe, detector of a suite -> the same run with the network that the suite compares."""

from dataclasses import replace

from ssldet.detectors.base import DetectorConfig, backbone_of
from ssldet.engine.run import Run
from ssldet.recipe import override


def hands_detector(stage: Run) -> bool:
    """Return whether a pretraining run leaves more of a detector than its backbone, if only an encoder.

    Args:
        stage: The run.
    """
    return not stage.task.stays_behind("encoder")


def in_suite(stage: Run, model: DetectorConfig, backbone: str | None = None) -> Run:
    """Return a pretraining run with the suite's network.

    A task that trains the backbone keeps its recipe's choice of norms and frozen stages, because it can't learn
    otherwise; the network is the same.

    Args:
        stage: The run of a recipe.
        model: The suite's detector.
        backbone: Address of the run that the backbone comes from, or `None`.
    """
    network = backbone_of(model)
    classes: dict[str, object] = {"num_classes": stage.detector.num_classes}
    if network is None:
        return replace(stage, detector=override(model, classes) if hands_detector(stage) else stage.detector)
    weights: dict[str, object] = {"backbone.weights": None if backbone else network.weights}
    if not hands_detector(stage):
        same = {f"backbone.{name}": getattr(network, name) for name in ("name", "output_stride", "tiny_channels")}
        return replace(stage, detector=override(stage.detector, weights | same))
    own = backbone_of(stage.detector)
    if own is not None and not stage.task.rests("backbone"):
        weights |= {f"backbone.{name}": getattr(own, name) for name in ("frozen_norm", "frozen_stages")}
    return replace(stage, detector=override(model, weights | classes))


def with_heads(model: DetectorConfig, stage: Run, backbone: str | None) -> DetectorConfig:
    """Return the suite's detector with the heads of a fine-tuning run.

    Args:
        model: The suite's detector.
        stage: The run of a recipe.
        backbone: Address of the run that the backbone comes from, or `None`.
    """
    changes: dict[str, object] = {"num_classes": stage.detector.num_classes}
    changes |= {"backbone.weights": None} if backbone else {}
    changes |= {"masks": True} if getattr(stage.detector, "masks", False) else {}
    return override(model, changes)
