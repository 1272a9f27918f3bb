"""ONNX graph that ssldet wrote -> `Opened`: its task with a detector that runs the graph, for answers alone.

The metadata of the graph state the contract: how images are sized, how logits are read, and the task. So views, tiles
and post-processing are those of the run that it came from, and answers differ only by the runtime's rounding.
"""

import contextlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from downstream.detection import Detection
from ssldet.class_scores import ClassScores, SigmoidScores, SoftmaxScores
from ssldet.detectors.base import Detector
from ssldet.documents import parse_json
from ssldet.errors import CheckpointError, ConfigError, SetupError
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.patches import PatchObjective
from ssldet.recipe import from_document, to_document
from ssldet.regular import open_regular
from ssldet.task import Task
from ssldet.types import Predictions, Queries
from ssldet.weights.graphs import begins_a_graph

PREFIX = "ssldet."
"""How the names of our metadata begin."""
AGAIN = "export it again from the run"


class GraphDetector(Detector):
    """A detector whose forward pass is an ONNX graph; it has no parameters, and no answers but those of the last layer.

    Attributes:
        path: File of the graph, for messages.
    """

    sections: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, path: Path, session: Any, scores: ClassScores, num_classes: int) -> None:
        """Take a graph that is ready to run.

        Args:
            path: Its file.
            session: Its `onnxruntime.InferenceSession`.
            scores: How its logits are read.
            num_classes: Number of classes, "no object" not counted.
        """
        super().__init__()
        self.path, self.scores, self.num_classes, self._session = path, scores, num_classes, session
        self.num_queries = self.width = self.feature_channels = 1  # nothing is built on them
        (images,) = (given for given in session.get_inputs() if given.name == "images")
        self._channels = int(images.shape[1])
        self._outputs = [output.name for output in session.get_outputs()]

    @property
    def in_channels(self) -> int:
        """Channels of the images that the graph takes."""
        return self._channels

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
        """Run the graph, on the CPU; masks of all queries come along where it draws them.

        Args:
            images: Pixels in 0..1.
            padding: True where the canvas holds no image.
            queries: None; the graph holds the detector's own ones.

        Raises:
            CheckpointError: The runtime can't run it on these images.
        """
        covered = torch.zeros(images.shape[0], *images.shape[2:]) if padding is None else padding
        fed = {"images": images.float().cpu().numpy(), "padding": covered.bool().cpu().numpy()}
        try:
            found = dict(zip(self._outputs, self._session.run(None, fed), strict=True))
        except Exception as error:  # the runtime's own classes derive from nothing else
            raise CheckpointError(f"{self.path}: fails on {tuple(images.shape)} ({_line(error)}); {AGAIN}") from error
        logits, boxes = (_tensor(found[name], images.device) for name in ("logits", "boxes"))
        masks = _tensor(found["masks"], images.device).flatten(0, 1) if "masks" in found else None
        states = logits.new_zeros(1, *logits.shape[:2], 0)
        return Predictions(logits=logits[None], boxes=boxes[None], states=states, masks=masks, scores=self.scores)

    def masks(
        self, predictions: Predictions, image: Int[Tensor, " N"], query: Int[Tensor, " N"]
    ) -> Float[Tensor, "N h w"]:
        """Return masks that the graph has drawn.

        Args:
            predictions: What `forward` returned.
            image: Image of each mask within the batch.
            query: Query of each mask within its image.

        Raises:
            CheckpointError: This graph draws none.
        """
        if predictions.masks is None:
            raise CheckpointError(f"{self.path}: draws no masks; {AGAIN}")
        return predictions.masks[image * predictions.logits.shape[2] + query]

    def features(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B E h w"]:
        """Refuse, since a graph returns answers only."""
        raise CheckpointError(f"{self.path}: a graph gives no features; name the run that it was exported from")

    def default_queries(self, batch_size: int) -> Queries:
        """Refuse, since the queries are inside the graph."""
        raise CheckpointError(f"{self.path}: a graph gives no queries; name the run that it was exported from")


def is_graph(candidate: Candidate) -> bool:
    """Tell whether a file begins as ONNX files do.

    Args:
        candidate: Any file or folder.
    """
    if candidate.path.is_dir():
        return False
    with contextlib.suppress(OSError), open_regular(candidate.path) as file:
        return begins_a_graph(file.read(3))
    return False


def open_graph(candidate: Candidate) -> Opened:
    """Make the task of a graph, with a detector that runs it.

    Args:
        candidate: An ONNX file.

    Raises:
        CheckpointError: It is damaged, was not written by ssldet, or needs more than images.
        SetupError: onnxruntime is not installed.
        ConfigError: Its task is not installed.
    """
    path = candidate.path
    session = _session(path)
    stated = {
        name.removeprefix(PREFIX): value
        for name, value in session.get_modelmeta().custom_metadata_map.items()
        if name.startswith(PREFIX)
    }
    if {"images", "padding"} != {one.name for one in session.get_inputs()} or "class_scores" not in stated:
        raise CheckpointError(f"{path}: is an ONNX graph that ssldet did not write, so how it is fed is not known")
    try:
        contract = {name: parse_json(value) for name, value in stated.items()}
        task, scores = _task(contract), _scores(contract)
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its metadata make no sense ({_line(error)}); {AGAIN}") from error
    detector = GraphDetector(path, session, scores, _num_classes(session, scores))
    objective = task.objective(detector) if isinstance(task, Detection) else None
    if objective is None or isinstance(objective, PatchObjective):
        raise CheckpointError(f"{path}: was taught to find patches, which a graph can't be given; name the run instead")
    classes = tuple(map(str, contract.get("classes", ())))
    info = {"task": to_document(task), "classes": list(classes), "category_ids": contract.get("category_ids", [])}
    return Opened(objective=objective.eval(), task=task, classes=classes, info=info, answers_only=True)


def _session(path: Path) -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise SetupError(f"{path}: an ONNX graph runs by onnxruntime; pip install 'ssldet[onnx]'")
    import onnxruntime  # here, because of what it takes to import

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes derive from nothing else
        raise CheckpointError(
            f"{path}: is no ONNX graph that can run ({_line(error)}); copy or export it again"
        ) from error


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


def _num_classes(session: Any, scores: ClassScores) -> int:
    rows = next((output.shape[-1] for output in session.get_outputs() if output.name == "logits"), 0)
    return scores.num_classes(rows) if isinstance(rows, int) else 0


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(device)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


IMPORTER = Importer(reads="ONNX graphs of ssldet (.onnx), for answers alone", recognises=is_graph, open=open_graph)
