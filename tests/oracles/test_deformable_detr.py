"""Deformable DETR beside the implementation of Hugging Face transformers, built from a small configuration."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ssldet.detectors.deformable_detr import DeformableDETR, DeformableDETRConfig
from ssldet.losses.set_prediction import set_prediction
from ssldet.types import Predictions, Targets
from ssldet.weights.deformable_detr_names import from_transformers, to_transformers
from tests.models import SMALL_DEFORMABLE_DETR

transformers: Any = pytest.importorskip("transformers")

VARIANTS = {"plain": (False, False), "refined": (True, False), "two stages": (True, True)}
CLASS, L1, GIOU = 2, 5, 2


def a_config(*, refine: bool, two_stage: bool) -> DeformableDETRConfig:
    return replace(SMALL_DEFORMABLE_DETR, refine_boxes=refine, two_stage=two_stage)


def theirs(config: DeformableDETRConfig) -> Any:
    """Their model of the same sizes, with random numbers everywhere."""
    sides = {
        f"{side}_{what}": value
        for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers))
        for what, value in (("layers", layers), ("attention_heads", config.heads), ("ffn_dim", config.feedforward))
    }
    settings = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            depths=[2, 2, 2, 2],
            hidden_sizes=[64, 128, 256, 512],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        d_model=config.width,
        num_queries=config.num_queries,
        two_stage_num_proposals=config.num_queries,
        num_labels=config.num_classes,
        encoder_n_points=config.encoder_points,
        decoder_n_points=config.decoder_points,
        num_feature_levels=config.backbone_levels + config.extra_levels,
        with_box_refine=config.refine_boxes,
        two_stage=config.two_stage,
        auxiliary_loss=True,
        class_cost=CLASS,
        bbox_cost=L1,
        giou_cost=GIOU,
        **sides,
    )
    model = transformers.DeformableDetrForObjectDetection(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def ours(config: DeformableDETRConfig, model: Any) -> DeformableDETR:
    detector = config.build().eval()
    with torch.no_grad():
        detector.load_state_dict(from_transformers(on_disk(model), "them", refines=config.refine_boxes))
    return detector


def on_disk(model: Any) -> dict[str, Tensor]:
    """The state under the names that their files have."""
    renamed = {}
    for name, value in model.state_dict().items():
        name = name.replace("model.backbone.model.", "model.backbone.conv_encoder.model.")
        name = name.replace("self_attn.o_proj", "self_attn.out_proj").replace(".mlp.fc", ".fc")
        renamed[name] = value
    return renamed


def some_images() -> tuple[Tensor, Tensor]:
    images, padding = torch.randn(2, 3, 96, 128), torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 70:], padding[1, :, 101:] = True, True
    return images.masked_fill(padding.unsqueeze(1), 0), padding


def some_targets() -> list[Targets]:
    boxes = torch.rand(5, 4) * 0.3 + 0.2
    return [
        Targets(boxes=boxes[:2], labels=torch.tensor([4, 1])),
        Targets(boxes=boxes[2:], labels=torch.tensor([0, 3, 3])),
    ]


@pytest.fixture(params=VARIANTS)
def pair(request: pytest.FixtureRequest) -> tuple[DeformableDETRConfig, DeformableDETR, Any]:
    config = a_config(refine=VARIANTS[request.param][0], two_stage=VARIANTS[request.param][1])
    model = theirs(config)
    return config, ours(config, model), model


def test_answers_are_theirs(pair: tuple[DeformableDETRConfig, DeformableDETR, Any]) -> None:
    config, detector, model = pair
    images, padding = some_images()
    with torch.no_grad():
        found = detector(images, padding)
        expected = model(pixel_values=images, pixel_mask=(~padding).long(), labels=as_labels(some_targets()))
    for layer, auxiliary in enumerate(expected.auxiliary_outputs):
        torch.testing.assert_close(found.logits[layer], auxiliary["logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[layer], auxiliary["pred_boxes"], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.logits[-1], expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
    assert (found.proposals is not None) == config.two_stage
    if found.proposals is not None:
        torch.testing.assert_close(found.proposals.logits[0], expected.enc_outputs_class, atol=1e-4, rtol=0)
        boxes = expected.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(found.proposals.boxes[0], boxes, atol=1e-4, rtol=0)
    # The images differ, and so must what is said of them.
    assert (found.logits[-1, 0] - found.logits[-1, 1]).abs().max() > 1e-2


def as_labels(targets: list[Targets]) -> list[dict[str, Tensor]]:
    return [{"class_labels": one.labels, "boxes": one.boxes} for one in targets]


class Weights:
    class_weight, box_l1_weight, box_giou_weight = float(CLASS), float(L1), float(GIOU)


def test_every_loss_is_theirs(pair: tuple[DeformableDETRConfig, DeformableDETR, Any]) -> None:
    config, detector, model = pair
    images, padding = some_images()
    targets = some_targets()
    found = set_prediction(Weights(), no_object_weight=1.0)(detector(images, padding), targets)
    expected = model(pixel_values=images, pixel_mask=(~padding).long(), labels=as_labels(targets))
    names = {"class": "loss_ce", "box_l1": "loss_bbox", "box_giou": "loss_giou"}
    for name, loss in names.items():
        last = config.decoder_layers - 1
        losses = [expected.loss_dict[f"{loss}_{layer}"] for layer in range(last)] + [expected.loss_dict[loss]]
        torch.testing.assert_close(found.terms[name], torch.stack(losses), atol=1e-4, rtol=1e-4)
    if config.two_stage:
        encoder = losses_of_proposals(model, expected, targets)
        for name, loss in names.items():
            torch.testing.assert_close(found.terms[f"proposal_{name}"][0], encoder[loss], atol=1e-4, rtol=1e-4)
    assert any(name.startswith("proposal_") for name in found.terms) == config.two_stage


def losses_of_proposals(model: Any, outputs: Any, targets: list[Targets]) -> dict[str, Tensor]:
    """Ask their criterion about proposals, for which their model does not; every target is of class 0 there."""
    from transformers.loss import loss_deformable_detr as theirs

    matcher = theirs.DeformableDetrHungarianMatcher(class_cost=CLASS, bbox_cost=L1, giou_cost=GIOU)
    criterion = theirs.DeformableDetrImageLoss(
        matcher=matcher, num_classes=model.config.num_labels, focal_alpha=0.25, losses=["labels", "boxes"]
    )
    binary = [replace(one, labels=torch.zeros_like(one.labels)) for one in targets]
    proposed = {
        "logits": outputs.enc_outputs_class,
        "pred_boxes": outputs.enc_outputs_coord_logits.sigmoid(),
    }
    losses: dict[str, Tensor] = criterion(proposed, as_labels(binary))
    return losses


def test_gradients_are_theirs(pair: tuple[DeformableDETRConfig, DeformableDETR, Any]) -> None:
    _, detector, model = pair
    images, padding = some_images()
    seed = torch.randn(2, detector.num_queries, 9)

    def total(predictions: tuple[Tensor, Tensor]) -> Tensor:
        return (torch.cat(predictions, dim=-1) * seed).sum()

    found = detector(images, padding)
    assert isinstance(found, Predictions)
    total((found.logits[-1], found.boxes[-1])).backward()
    expected = model(pixel_values=images, pixel_mask=(~padding).long())
    total((expected.logits, expected.pred_boxes)).backward()
    for name in ("level_embed", "input_proj.0.0.weight", "input_proj.3.0.weight"):
        theirs = model.get_parameter(f"model.{name}").grad
        own = name.replace("level_embed", "level_embedding.weight").replace("input_proj", "projection.levels")
        torch.testing.assert_close(detector.get_parameter(own).grad, theirs, atol=1e-3, rtol=1e-3)


def test_names_go_there_and_back(pair: tuple[DeformableDETRConfig, DeformableDETR, Any]) -> None:
    config, detector, model = pair
    state = detector.state_dict()
    back = to_transformers(state)
    again = from_transformers(back, "us", refines=config.refine_boxes)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    missing = {name for name in on_disk(model) if ".conv_encoder." not in name} - back.keys()
    assert not missing
