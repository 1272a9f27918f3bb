"""Predictions -> Detections: boxes of the last layer in pixels of the images on disk."""

import torch
from jaxtyping import Int
from torch import Tensor

from ssldet.boxes import cxcywh_to_xyxy
from ssldet.errors import DivergedError
from ssldet.types import Detections, Predictions


@torch.no_grad()
def detections(predictions: Predictions, original_sizes: Int[Tensor, "B 2"]) -> list[Detections]:
    """Turn every query into one detection, without threshold or suppression, as DETR does.

    Args:
        predictions: Outputs of the detector; only the last layer is used.
        original_sizes: Height and width of each image on disk.

    Returns:
        As many detections per image as there are queries; boxes are absolute xyxy and not clipped to the image.

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
