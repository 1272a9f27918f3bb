"""Predictions -> Detections: the last layer's answer in pixels of the images on disk."""

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy
from ssldet.errors import DivergedError
from ssldet.types import Detections, Predictions


@torch.no_grad()
def detections(predictions: Predictions, original_sizes: Int[Tensor, "B 2"]) -> list[Detections]:
    """Turn every query into one detection: no threshold, no suppression, as DETR has it.

    Args:
        predictions: What the detector answered; only the last layer counts.
        original_sizes: Height and width of each image on disk.

    Returns:
        As many detections an image as there are queries; boxes are absolute xyxy and not cut off at the image's edge.

    Raises:
        DivergedError: A box or score is not finite.
    """
    scores, labels = predictions.scores.probabilities(predictions.logits[-1].float()).max(-1)
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
        Detections(boxes=image_boxes, scores=image_scores, labels=image_labels)
        for image_boxes, image_scores, image_labels in zip(boxes, scores, labels, strict=True)
    ]
