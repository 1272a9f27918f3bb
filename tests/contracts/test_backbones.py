"""What every family of backbones must keep: any size of image, original names and numbers, gradients as declared."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from ssldet.detectors.detr import DETRConfig
from ssldet.errors import ConfigError
from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone, original_state
from ssldet.nn.backbones.families import TESTED, Description, describe, described

STAGES_UNKNOWN = {"timm/twins_pcpvt_small"}
"""Networks whose stages can't be told apart, so that freezing the first ones is refused."""
ONE_SIZE_ORIGINALS = {"timm/beit_base_patch16_224": (224, 224)}
"""Networks that the library itself has for one size of image only."""


@dataclass(frozen=True)
class Case:
    family: Description
    backbone: Backbone
    original: nn.Module


@pytest.fixture(scope="module", params=TESTED, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest) -> Case:
    family = request.param
    torch.manual_seed(0)
    stages = 0 if family.name in STAGES_UNKNOWN else 1
    backbone = build_backbone(BackboneConfig(name=family.name, frozen_stages=stages))
    return Case(family, backbone, fresh(family.name, backbone))


def fresh(name: str, backbone: Backbone) -> nn.Module:
    """The library's own headless model; `tiny` has no library and is its own original."""
    library, _, model = name.rpartition("/")
    torch.manual_seed(1)
    if library == "torchvision":
        return get_model(model, weights=None)
    if not library:
        return build_backbone(BackboneConfig(name=name)).body
    for options in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}, {}):
        try:
            return timm.create_model(model, pretrained=False, num_classes=0, **options)
        except TypeError:
            continue
    raise AssertionError(name)


def last_level(family: Description, model: Any, images: Tensor) -> Tensor:
    """What the library itself calls the features, as NCHW."""
    if family.name.startswith("timm/"):
        features: Tensor = model.forward_features(images)
        if features.dim() == 3:
            cells = [-(-side // family.strides[-1]) for side in images.shape[-2:]]
            return features[:, getattr(model, "num_prefix_tokens", 0) :].transpose(1, 2).unflatten(2, cells)
        if features.shape[1] != family.channels[-1]:
            features = features.permute(0, 3, 1, 2)
        if features.shape[1] != family.channels[-1]:
            # Its features have passed a convolution that belongs to the head.
            return model.forward_intermediates(images, 1, intermediates_only=True)[-1]
        return features
    seen: list[Tensor] = []
    ends = {"torchvision/shufflenet_v2_x0_5": "conv5", "torchvision/densenet121": "features"}
    if family.name in ends:
        model.get_submodule(ends[family.name]).register_forward_hook(
            lambda module, inputs, output: seen.append(output.clone())
        )
    else:
        model.avgpool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    return seen[0]


def test_the_table_says_what_is_measured(case: Case) -> None:
    assert described(case.family.name, case.backbone) == case.family
    assert case.backbone.level_channels == case.family.channels
    assert case.backbone.level_strides == case.family.strides


@pytest.mark.parametrize("number", [3, 7, 9])
def test_measuring_needs_no_memory_and_finds_the_same(number: int) -> None:
    assert describe(TESTED[number].name) == TESTED[number]


def test_names_are_the_librarys_own(case: Case) -> None:
    names = list(case.original.state_dict())
    state = original_state(case.backbone)
    assert [name for name in names if name not in case.backbone.pruned] == list(state)
    assert set(case.backbone.pruned) <= set(names)
    heads = ("fc.", "classifier.", "head.", "pre_logits.")
    body = {name for name in names if not name.startswith(heads)}
    assert set(case.backbone.body.state_dict()) <= set(names)
    assert len(state) > 0.6 * len(body)


def test_weights_of_the_library_give_the_features_of_the_library(case: Case) -> None:
    if case.family.name == "tiny":
        pytest.skip("tiny has no library")
    missing = case.backbone.body.load_state_dict(case.original.state_dict(), strict=False).missing_keys
    assert missing == []
    images = torch.randn(1, 3, *ONE_SIZE_ORIGINALS.get(case.family.name, (96, 128)))
    with torch.no_grad():
        expected = last_level(case.family, case.original.eval(), images)
        levels = case.backbone.eval().levels(images)
    torch.testing.assert_close(levels[-1], expected, atol=2e-4, rtol=1e-3)
    case.original.load_state_dict(original_state(case.backbone), strict=False)


@pytest.mark.parametrize("size", [(333, 499), (128, 128)], ids=["image", "patch"])
def test_images_and_patches_of_any_size_give_the_declared_levels(case: Case, size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    padding = torch.zeros(1, *size, dtype=torch.bool)
    padding[:, :, -9:] = True
    with torch.no_grad():
        levels = case.backbone.eval().levels(case.backbone.normalise(pixels, padding))
    assert tuple(level.shape[1] for level in levels) == case.family.channels
    for level, stride in zip(levels, case.family.strides, strict=True):
        # Sides that the network needs rounded up to multiples of 32 make up to 32 / stride cells more.
        spare = max(2.0, 32 / stride)
        assert all(abs(cells - side / stride) < spare for cells, side in zip(level.shape[2:], size, strict=True))
        assert level.isfinite().all()


def test_every_parameter_that_learns_gets_a_gradient_and_no_other(case: Case) -> None:
    backbone = case.backbone.train().requires_grad_(True)
    backbone(torch.randn(2, 3, 64, 96)).square().sum().backward()
    with_gradient = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    learning = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert with_gradient == learning
    frozen = {name for name, _ in backbone.named_parameters()} - learning
    assert learning
    assert bool(frozen) == (case.family.name not in STAGES_UNKNOWN)
    backbone.zero_grad()


def test_stages_that_can_not_be_told_apart_are_not_frozen() -> None:
    for name in STAGES_UNKNOWN:
        with pytest.raises(ConfigError, match=r"frozen_stages=1 would freeze nothing.*use frozen_stages=0"):
            build_backbone(BackboneConfig(name=name))


@pytest.mark.parametrize("stages", range(6))
def test_a_quarter_of_a_vision_transformer_is_a_stage(stages: int) -> None:
    backbone = build_backbone(BackboneConfig(name="timm/vit_tiny_patch16_224", frozen_stages=stages))
    frozen = {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    blocks = {int(name.split(".")[1]) for name in frozen if name.startswith("blocks.")}
    assert blocks == set(range(min(3 * stages, 12)))
    assert ({"cls_token", "pos_embed", "patch_embed.proj.weight"} <= frozen) == (stages > 0)
    assert ("norm.weight" in frozen) == (stages >= 4)


DILATED = ["resnet10t", "resnetv2_18", "regnetx_002", "efficientnet_lite0", "convnext_atto", "repvgg_a0"]
FINE_ENOUGH = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"]
TOO_COARSE = ["pvt_v2_b0", "hgnetv2_b0", "mobilenetv3_small_050", "vit_tiny_r_s16_p8_224"]


@pytest.mark.parametrize("name", DILATED + FINE_ENOUGH)
def test_a_last_level_of_stride_16_where_the_family_can(name: str) -> None:
    backbone = build_backbone(BackboneConfig(name=f"timm/{name}", output_stride=16))
    levels = backbone.levels(torch.zeros(1, 3, 112, 224))
    assert len(levels) == (4 if name in DILATED else 1)
    for level, stride in zip(levels, backbone.level_strides, strict=True):
        assert level.shape[2:] == (112 // stride, 224 // stride)
    assert backbone.stride <= 16


@pytest.mark.parametrize("name", TOO_COARSE)
def test_and_a_clear_refusal_where_it_can_not(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'timm/{name}': it has no form with output_stride=16; use 32, or a ResNet"):
        build_backbone(BackboneConfig(name=f"timm/{name}", output_stride=16))


REFUSED = [
    ("timm/hiera_tiny_224", "its positions are made for one image size"),
    ("timm/maxvit_rmlp_pico_rw_256", "its windows must divide the image"),
    ("timm/mvitv2_tiny", "its relative positions end at one image size"),
    ("timm/crossvit_tiny_240", "it resizes every image to one size"),
    ("timm/cait_xxs24_224", r"can't look at images of any size \(Input height"),
    ("timm/levit_128s", "can't look at images of any size"),
    ("torchvision/vit_b_16", "use 'timm/vit_base_patch16_224'"),
    ("torchvision/maxvit_t", "its windows fit only one image size"),
    ("torchvision/alexnet", "its last level has stride 64"),
]


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_what_can_not_serve_says_why_and_what_can(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}': .*{reason}") as refusal, torch.device("meta"):
        build_backbone(BackboneConfig(name=name))
    assert "; use '" in str(refusal.value)


@pytest.mark.parametrize("name", ["timm/regnetx_002", "timm/pvt_v2_b0", "timm/vit_tiny_patch16_224"])
def test_a_detection_transformer_learns_through_it(name: str) -> None:
    config = DETRConfig(
        backbone=BackboneConfig(name=name), width=32, heads=2, encoder_layers=1, decoder_layers=1, num_queries=5,
        num_classes=3,
    )  # fmt: skip
    detector = config.build().train()
    padding = torch.zeros(2, 97, 131, dtype=torch.bool)
    padding[1, :, 100:] = True
    pixels = torch.randint(0, 256, (2, 3, 97, 131), dtype=torch.uint8)
    predictions = detector(detector.normalise(pixels, padding), padding)
    (predictions.logits.sum() + predictions.boxes.sum()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
