"""detector, its graph -> how far their answers to images of several sizes differ."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from downstream.export.proof import Comparison
from downstream.graphs import Graph, first_line
from ssldet.chance import generator
from ssldet.detectors.base import Detector
from ssldet.detectors.deformable_detr import DeformableDETR
from ssldet.errors import CheckpointError

ALLOWED_DIFFERENCE = 1e-3
"""Largest difference of a logit or a box: runtimes order and fuse sums differently."""
SHAPES = ((2, 96, 128), (1, 160, 64), (3, 101, 75))
"""Batches whose answers are compared; the first is the one that the graph is traced with."""


class Answering(nn.Module):
    """Pixels -> the answers of the last decoder layer: what a graph computes."""

    def __init__(self, detector: Detector) -> None:
        """Take a detector.

        Args:
            detector: Whose answers they are.
        """
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        """Return logits and boxes and, if the detector has a mask head, the masks of all queries.

        Args:
            images: RGB, or whatever channels the detector takes, in 0..1.
            padding: True where the canvas holds no image.
        """
        predictions = self.detector(self.detector.normalise(images, padding), padding)
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        if predictions.encoded_images is None:
            return logits, boxes
        count, queries = logits.shape[:2]
        every = torch.arange(count * queries, device=logits.device)
        masks = self.detector.masks(predictions, every // queries, every % queries)
        return logits, boxes, masks.view(count, queries, *masks.shape[-2:])

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return ["logits", "boxes", *(["masks"] if "mask_head" in self.detector.sections else [])]


def batch(shape: tuple[int, int, int], channels: int) -> tuple[Float[Tensor, "B c H W"], Bool[Tensor, "B H W"]]:
    """Return random images on one canvas, of which the last does not fill it.

    Args:
        shape: Number, height and width of the images.
        channels: Their channels.
    """
    count, height, width = shape
    padding = torch.zeros(count, height, width, dtype=torch.bool)
    padding[-1, height * 2 // 3 :], padding[-1, :, width * 3 // 4 :] = True, True
    return torch.rand(count, channels, height, width, generator=generator("export", height)), padding


def compared(
    answering: Answering, graph: Graph, name: str, allowed: float = ALLOWED_DIFFERENCE, remark: str = ""
) -> Comparison:
    """Return the comparison of a detector with its graph, which has no named tensors, only answers.

    Args:
        answering: The detector, in evaluation mode and on the CPU.
        graph: Its graph.
        name: Name of the file, for messages.
        allowed: Largest allowed difference of a logit or a box.
        remark: What the report adds.
    """
    return Comparison(
        ours={},
        theirs={},
        difference=lambda: difference(answering, graph.run, name),
        allowed=allowed,
        remark=remark,
    )


def difference(
    answering: Answering, run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], name: str
) -> float:
    """Return the largest difference of any number in the answers to all of `SHAPES`.

    Args:
        answering: The detector, in evaluation mode and on the CPU.
        run: Runs its graph: arrays by name -> outputs by name.
        name: Name of the file, for messages.

    Raises:
        CheckpointError: The graph fails on images of one of these sizes.
    """
    # Not Python's `max`, which passes over what is not a number.
    return float(torch.tensor([_difference(answering, run, name, shape) for shape in SHAPES]).max())


def _difference(
    answering: Answering,
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    name: str,
    shape: tuple[int, int, int],
) -> float:
    count, height, width = shape
    images, padding = batch(shape, answering.detector.in_channels)
    with torch.no_grad():
        ours = answering(images, padding)
    try:
        found = run({"images": images.numpy(), "padding": padding.numpy()})
    except Exception as error:  # runtimes raise exceptions of any class
        raise CheckpointError(
            f"{name}: not written, since its graph can't take {count} images of {height}x{width} ({first_line(error)})"
        ) from error
    theirs = [torch.from_numpy(found[output]) for output in answering.outputs]
    if orders_by_score(answering.detector):
        theirs = in_order_of(ours, theirs)
    return float(torch.stack([(one - other).abs().max() for one, other in zip(ours, theirs, strict=True)]).max())


def orders_by_score(detector: Detector) -> bool:
    """Tell whether the order of a detector's queries depends on scores, so that rounding may exchange two of them.

    Args:
        detector: Any detector.
    """
    return isinstance(detector, DeformableDETR) and detector.proposals is not None


def in_order_of(ours: tuple[Tensor, ...], theirs: list[Tensor]) -> list[Tensor]:
    """Return their answers with the queries of each image in the order in which they resemble ours most.

    Args:
        ours: Logits, boxes and possibly masks of the model, B Q and more.
        theirs: The same of the graph.
    """
    distance = torch.cdist(torch.cat(ours[:2], -1), torch.cat(theirs[:2], -1), p=torch.inf)
    if not distance.isfinite().all():
        return theirs  # the difference will say so
    orders = [torch.from_numpy(linear_sum_assignment(image)[1]) for image in distance.numpy()]
    return [torch.stack([rows[order] for rows, order in zip(output, orders, strict=True)]) for output in theirs]
