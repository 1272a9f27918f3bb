"""Predictions -> Detections: boxes of the last layer in pixels of the images on disk."""

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy
from ssldet.class_scores import ClassAnswers
from ssldet.errors import DivergedError
from ssldet.types import Detections, Predictions


@torch.no_grad()
def detections(predictions: Predictions, original_sizes: Int[Tensor, "B 2"]) -> list[Detections]:
    """Turn predictions into detections as the detector's authors do, without threshold or suppression.

    A softmax head, such as DETR's, has every query answer once, in order; a sigmoid head, such as Deformable DETR's,
    answers with the best pairs of a query and a class (`ClassScores.detected`).

    Args:
        predictions: Outputs of the detector; only the last layer is used.
        original_sizes: Height and width of each image on disk.

    Returns:
        Equally many detections for every image; boxes are absolute xyxy and not clipped to the image.

    Raises:
        DivergedError: A box or score is not finite.
    """
    return _in_pixels(predictions, predictions.scores.detected(predictions.logits[-1].float()), original_sizes)


@torch.no_grad()
def answers_of_queries(predictions: Predictions, original_sizes: Int[Tensor, "B 2"]) -> list[Detections]:
    """Turn every query into one detection, in the order of the queries, however class logits are read.

    This is for tasks that ask each query something of its own, such as where a certain patch lies.

    Args:
        predictions: Outputs of the detector; only the last layer is used.
        original_sizes: Height and width of each image on disk.

    Returns:
        As many detections per image as there are queries; boxes are absolute xyxy and not clipped to the image.

    Raises:
        DivergedError: A box or score is not finite.
    """
    return _in_pixels(predictions, predictions.scores.of_each_query(predictions.logits[-1].float()), original_sizes)


def _in_pixels(predictions: Predictions, answers: ClassAnswers, original_sizes: Int[Tensor, "B 2"]) -> list[Detections]:
    scores = answers.probabilities
    height, width = original_sizes.to(scores.device).unbind(-1)
    scale = torch.stack([width, height, width, height], dim=-1).unsqueeze(1)
    boxes = cxcywh_to_xyxy(predictions.boxes[-1].float()) * scale
    finite = boxes.isfinite().flatten(1).all(1) & scores.isfinite().all(1)
    if not finite.all():
        images = (~finite).nonzero().flatten().tolist()
        raise DivergedError(
            f"boxes or scores of image {images[0]} of the batch ({len(images)} of {len(finite)} images) are not "
            "finite: the model has diverged; go back to an earlier checkpoint or lower optim.lr"
        )
    return [
        Detections(boxes=image_boxes[queries], scores=image_scores, labels=labels)
        for image_boxes, queries, image_scores, labels in zip(
            boxes, answers.queries, scores, answers.labels, strict=True
        )
    ]
