"""graph that ssldet wrote -> `Opened`: its task with a detector that runs the graph, for answers alone.

The metadata of the graph state the contract: how images are sized, how logits are read, and the task. So views, tiles
and post-processing are those of the run that it came from, and answers differ only by the runtime's rounding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from downstream.detection import Detection
from downstream.graphs import AGAIN, Graph, first_line
from ssldet.class_scores import ClassScores, SigmoidScores, SoftmaxScores
from ssldet.detectors.base import Detector
from ssldet.documents import parse_json
from ssldet.errors import CheckpointError, ConfigError
from ssldet.importing.base import Opened
from ssldet.patches import PatchObjective
from ssldet.recipe import from_document, to_document
from ssldet.task import Task
from ssldet.types import Predictions, Queries


class GraphDetector(Detector):
    """A detector whose forward pass is a graph; it has no parameters, and no answers but those of the last layer.

    Attributes:
        path: File of the graph, for messages.
    """

    sections: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, graph: Graph, scores: ClassScores) -> None:
        """Take a graph that is ready to run.

        Args:
            graph: The graph.
            scores: How its logits are read.
        """
        super().__init__()
        self.path, self.scores, self._graph = graph.path, scores, graph
        rows = graph.shapes.get("logits", (None,))[-1]
        self.num_classes = scores.num_classes(rows) if isinstance(rows, int) else 0
        self.num_queries = self.width = self.feature_channels = 1  # nothing is built on them

    @property
    def in_channels(self) -> int:
        """Channels of the images that the graph takes."""
        return int(self._graph.shapes["images"][1])

    def normalise(
        self, pixels: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B c H W"], padding: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B c H W"]:
        """Scale pixels to 0..1 and no further, since the graph subtracts the mean and divides by the deviation."""
        return pixels if pixels.is_floating_point() else pixels.float() / 255

    def forward(
        self,
        images: Float[Tensor, "B c H W"],
        padding: Bool[Tensor, "B H W"] | None = None,
        queries: Queries | None = None,
    ) -> Predictions:
        """Run the graph, on the CPU; masks of all queries come along where it draws them. See `Detector.forward`.

        Args:
            images: Pixels in 0..1.
            padding: True where the canvas holds no image.
            queries: Not read: the graph holds the detector's own ones.

        Raises:
            CheckpointError: The runtime can't run it on these images.
        """
        covered = torch.zeros(images.shape[0], *images.shape[2:]) if padding is None else padding
        fed = {"images": images.float().cpu().numpy(), "padding": covered.bool().cpu().numpy()}
        try:
            found = self._graph.run(fed)
        except Exception as error:  # the runtime's own classes derive from nothing else
            raise CheckpointError(
                f"{self.path}: fails on {tuple(images.shape)} ({first_line(error)}); {AGAIN}"
            ) from error
        logits, boxes = (_tensor(found[name], images.device) for name in ("logits", "boxes"))
        masks = _tensor(found["masks"], images.device).flatten(0, 1) if "masks" in found else None
        states = logits.new_zeros(1, *logits.shape[:2], 0)
        return Predictions(logits=logits[None], boxes=boxes[None], states=states, masks=masks, scores=self.scores)

    def masks(
        self, predictions: Predictions, image: Int[Tensor, " N"], query: Int[Tensor, " N"]
    ) -> Float[Tensor, "N h w"]:
        """Return masks that the graph has drawn already, as `Detector.masks` says.

        Raises:
            CheckpointError: This graph draws none.
        """
        if predictions.masks is None:
            raise CheckpointError(f"{self.path}: draws no masks; {AGAIN}")
        return predictions.masks[image * predictions.logits.shape[2] + query]

    def features(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B E h w"]:
        """Refuse, since a graph returns answers only."""
        raise self._lacks("features")

    def default_queries(self, batch_size: int) -> Queries:
        """Refuse, since the queries are inside the graph."""
        raise self._lacks("queries")

    def _lacks(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: a graph gives no {what}; name the run that it was exported from")


def opened(graph: Graph) -> Opened:
    """Make the task of a graph, with a detector that runs it.

    Args:
        graph: The graph.

    Raises:
        CheckpointError: It was not written by ssldet, or needs more than images.
        ConfigError: Its task is not installed.
    """
    path = graph.path
    if set(graph.inputs) != {"images", "padding"} or "class_scores" not in graph.metadata:
        raise CheckpointError(f"{path}: is a graph that ssldet did not write, so how it is fed is not known")
    try:
        contract = {name: parse_json(value) for name, value in graph.metadata.items()}
        task, scores = _task(contract), _scores(contract)
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its metadata make no sense ({first_line(error)}); {AGAIN}") from error
    detector = GraphDetector(graph, scores)
    objective = task.objective(detector) if isinstance(task, Detection) else None
    if objective is None or isinstance(objective, PatchObjective):
        raise CheckpointError(f"{path}: was taught to find patches, which a graph can't be given; name the run instead")
    classes = tuple(map(str, contract.get("classes", ())))
    info = {"task": to_document(task), "classes": list(classes), "category_ids": contract.get("category_ids", [])}
    return Opened(objective=objective.eval(), task=task, classes=classes, info=info, answers_only=True)


def _task(contract: Mapping[str, Any]) -> Task:
    """Return the task that the graph states; older files state sizes alone, and are plain detectors."""
    if "task" in contract:
        task: Task = from_document(Task, contract["task"])  # type: ignore[type-abstract]
        return task
    sizes = contract["resize"]
    return Detection(
        eval_rule=sizes["rule"],
        eval_scale=sizes["short"],
        max_size=sizes["max_size"],
        eval_size=tuple(sizes["size"]),
        scales=(sizes["short"],),
    )


def _scores(contract: Mapping[str, Any]) -> ClassScores:
    if contract["class_scores"] == "softmax":
        return SoftmaxScores()
    if contract["class_scores"] == "sigmoid":
        return SigmoidScores(most_detections=int(contract["most_detections"]))
    raise ValueError(f"class_scores: {contract['class_scores']!r} is neither 'softmax' nor 'sigmoid'")


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(device)
