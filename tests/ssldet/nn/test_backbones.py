import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.ops import FrozenBatchNorm2d

from ssldet.errors import ConfigError
from ssldet.nn.backbones import (
    Backbone,
    BackboneConfig,
    FixedNorm,
    Network,
    backbone_names,
    build_backbone,
    calibrate,
    original_state,
)
from ssldet.recipe import check


def build(name: str, **options: object) -> Backbone:
    return build_backbone(BackboneConfig(name=name, **options))  # type: ignore[arg-type]


FAMILIES = [
    ("resnet18", 512),
    ("torchvision/regnet_x_400mf", 400),
    ("torchvision/mobilenet_v3_small", 576),
    ("timm/resnet18", 512),
    ("timm/convnext_atto", 320),
    ("timm/efficientnet_b0", 320),
    ("timm/regnetx_002", 368),
]


@pytest.mark.parametrize(("name", "channels"), FAMILIES)
def test_any_cnn_answers_any_size_and_leaves_no_parameter_without_gradient(name: str, channels: int) -> None:
    backbone = build(name, frozen_norm=False, frozen_stages=0)
    level = backbone(torch.randn(2, 3, 75, 110))
    assert level.shape[:2] == (2, channels)
    assert backbone.channels == channels
    assert backbone.stride == 32
    level.square().sum().backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_names_are_torchvisions_own_and_features_too(name: str) -> None:
    original = get_model(name, weights=None).eval()
    backbone = build(name, frozen_norm=False).eval()
    missing, unexpected = backbone.body.load_state_dict(original.state_dict(), strict=False)
    assert missing == []
    head = "fc" if name == "resnet18" else "classifier"
    assert {key.split(".")[0] for key in unexpected} == {head}
    images = torch.randn(1, 3, 64, 96)
    pooled = original.avgpool(backbone(images)).flatten(1)
    torch.testing.assert_close(original.get_submodule(head)(pooled), original(images))


def test_resnet50_has_the_265_entries_of_detrs_files() -> None:
    state = build("resnet50").body.state_dict()
    assert len(state) == 265
    assert {"conv1.weight", "bn1.running_var", "layer4.2.conv3.weight", "layer1.0.downsample.1.bias"} <= set(state)


def test_torchvision_comes_first_and_timm_has_the_rest() -> None:
    assert "layer4.1.bn2.weight" in build("resnet18").body.state_dict()
    assert build("resnet26d", frozen_norm=False).channels == 2048


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "tiny"])
def test_frozen_norm_is_fixed_and_equals_the_norm_it_replaced(name: str) -> None:
    free, fixed = build(name, frozen_norm=False).eval(), build(name, frozen_norm=True).train()
    for buffer_name, buffer in free.named_buffers():
        if buffer_name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    fixed.load_state_dict(free.state_dict())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fixed.modules())
    before = {key: value.clone() for key, value in fixed.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(fixed(images), free(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dict(fixed.state_dict()), before)


@pytest.mark.parametrize(("name", "channels"), [("resnet50", 2048), ("timm/resnet18", 512)])
def test_dc5_doubles_the_resolution(name: str, channels: int) -> None:
    plain, dilated = build(name), build(name, output_stride=16)
    assert (plain.stride, dilated.stride) == (32, 16)
    assert dilated(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 4, 6)
    assert list(plain.state_dict()) == list(dilated.state_dict())


STAGES = {
    "resnet18": ["conv1", "bn1", "layer1", "layer2"],
    "timm/convnext_atto": ["stem", "stages.0", "stages.1"],
    "timm/efficientnet_b0": ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"],
    "torchvision/regnet_x_400mf": ["stem", "trunk_output.block1", "trunk_output.block2"],
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("stages", [0, 1, 2])
def test_frozen_stages_reach_to_stride_4_then_8(name: str, stages: int) -> None:
    backbone = build(name, frozen_norm=False, frozen_stages=stages)
    frozen = STAGES[name][: len(STAGES[name]) - 2 + stages] if stages else []
    for parameter_name, parameter in backbone.body.named_parameters():
        expected = any(parameter_name.startswith(f"{part}.") for part in frozen)
        assert parameter.requires_grad is not expected, parameter_name


def test_frozen_stages_stay_frozen_and_keep_their_statistics_while_the_rest_learns() -> None:
    backbone = build("resnet18", frozen_norm=False, frozen_stages=1)
    backbone.requires_grad_(False)
    backbone.requires_grad_(True).train()
    assert not backbone.body.conv1.weight.requires_grad
    assert backbone.body.layer2[0].conv1.weight.requires_grad
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    moved = {key.split(".")[1] for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_a_frozen_backbone_runs_without_autograd() -> None:
    backbone = build("tiny").requires_grad_(False)
    images = torch.randn(2, 3, 40, 56)
    assert backbone(images).grad_fn is None
    assert backbone(images.requires_grad_()).grad_fn is not None


def test_fixed_norm_is_torchvisions_and_keeps_the_precision_of_its_input() -> None:
    ours, theirs = FixedNorm(5, eps=1e-3), FrozenBatchNorm2d(5, eps=1e-3)
    for buffer in theirs.buffers():
        buffer.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(ours(features), theirs(features))
    assert ours(features.bfloat16()).dtype == torch.bfloat16


def test_layout_in_memory_changes_no_number() -> None:
    backbone = build("resnet18")
    images = torch.randn(2, 3, 40, 56)
    torch.testing.assert_close(backbone(images), backbone.body(images))
    assert all(value.is_contiguous() for value in backbone.state_dict().values())


def test_pixels_are_scaled_by_the_networks_own_mean_and_deviation() -> None:
    backbone = build("timm/resnet18")
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    other = Backbone(Network(body=backbone.body, run=backbone._run, mean=backbone.mean, std=backbone.std))
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    padding = torch.zeros(2, 5, 7, dtype=torch.bool)
    padding[1, :, 3:] = True
    found = other.normalise(pixels, padding)
    expected = (pixels[0, 1, 2, 3].item() / 255 - 0.2) / 0.25
    assert found[0, 1, 2, 3].item() == pytest.approx(expected, abs=1e-5)
    assert found[1, :, :, 3:].abs().max() == 0
    torch.testing.assert_close(other.normalise(pixels.float() / 255, padding), found, atol=1e-5, rtol=1e-5)


LEVELS = [
    ("resnet18", (64, 128, 256, 512), (4, 8, 16, 32)),
    ("timm/resnet18", (64, 128, 256, 512), (4, 8, 16, 32)),
    ("torchvision/mobilenet_v3_small", (16, 24, 48, 576), (4, 8, 16, 32)),
    ("timm/swin_tiny_patch4_window7_224", (96, 192, 384, 768), (4, 8, 16, 32)),
    ("timm/vit_tiny_patch16_224", (192,), (16,)),
    ("tiny", (32, 64, 224), (2, 4, 8)),
]


@pytest.mark.parametrize(("name", "channels", "strides"), LEVELS)
def test_levels_run_from_fine_to_coarse_and_end_with_the_last(
    name: str, channels: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    backbone = build(name).eval()
    images = torch.randn(2, 3, 75, 110)
    levels = backbone.levels(images)
    assert (backbone.level_channels, backbone.level_strides) == (channels, strides)
    assert (backbone.channels, backbone.stride) == (channels[-1], strides[-1])
    assert tuple(level.shape[1] for level in levels) == channels
    for level, stride in zip(levels, strides, strict=True):
        assert abs(level.shape[2] - 75 / stride) < 1.01
        assert abs(level.shape[3] - 110 / stride) < 1.01
    torch.testing.assert_close(levels[-1], backbone(images))


def test_levels_of_a_dilated_resnet_keep_the_stage_before_the_last() -> None:
    backbone = build("resnet50", output_stride=16)
    assert (backbone.level_channels, backbone.level_strides) == ((256, 512, 1024, 2048), (4, 8, 16, 16))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/efficientnet_b0"])
@pytest.mark.parametrize("frozen_norm", [False, True])
def test_the_original_state_loads_into_the_librarys_own_model(name: str, frozen_norm: bool) -> None:
    import timm

    backbone = build(name, frozen_norm=frozen_norm)
    library, _, model = name.rpartition("/")
    original = timm.create_model(model, num_classes=0) if library else get_model(model, weights=None)
    state = original_state(backbone)
    assert original.load_state_dict(state, strict=False).unexpected_keys == []
    assert [key for key in original.state_dict() if key not in backbone.pruned] == list(state)
    assert backbone.pruned == tuple(key for key in original.state_dict() if key not in state)
    assert all(state[key].dtype == torch.long for key in state if key.endswith("num_batches_tracked"))


def test_no_buffer_of_ours_enters_the_state() -> None:
    assert all(key.startswith("body.") for key in build("tiny").state_dict())


@pytest.mark.parametrize("frozen_norm", [False, True])
def test_calibration_gives_every_norm_zero_mean_and_unit_variance(frozen_norm: bool) -> None:
    backbone = build("tiny", frozen_norm=frozen_norm, tiny_channels=(5, 7))
    images = torch.rand(6, 3, 32, 48) * 3 + 1
    calibrate(backbone, images)
    seen = []
    hooks = [
        layer.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for layer in backbone.body.children()
    ]
    backbone.eval()(images)
    for hook in hooks:
        hook.remove()
    assert [values.shape[1] for values in seen] == [5, 7]
    for values in seen:
        torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(values.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.var((0, 2, 3)), torch.ones(values.shape[1]), atol=2e-2, rtol=0)


def test_calibration_keeps_the_mode_and_listens_no_longer() -> None:
    backbone = build("tiny").train()
    calibrate(backbone, torch.randn(4, 3, 32, 32))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 32, 32) + 5)
    assert backbone.training
    torch.testing.assert_close(dict(backbone.state_dict()), before)


def test_tiny_is_small_and_the_same_for_the_same_seed() -> None:
    first, second = (torch.manual_seed(3) and build("tiny") for _ in range(2))
    assert (first.channels, first.stride) == (32 + 64 + 128, 8)
    assert sum(parameter.numel() for parameter in first.parameters()) < 100_000
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    assert build("tiny", tiny_channels=(8, 16)).stride == 4


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt50", "did you mean 'resnet50'"),
        ("torchvision/resnet51", "did you mean 'torchvision/resnet50'"),
        ("timm/convnext_ato", "did you mean 'timm/convnext_atto'"),
        ("timm/tiny", "use 'tiny', 'torchvision/MODEL' or 'timm/MODEL'"),
        ("torchvision/vit_b_16", "use 'timm/vit_base_patch16_224'"),
        ("timm/hiera_tiny_224", "made for one image size; use 'resnet50'"),
    ],
)
def test_a_name_that_does_not_work_is_answered_with_one_that_does(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        build(name)


def test_what_can_not_be_dilated_says_so() -> None:
    for name in ("resnet18", "mobilenet_v3_small", "torchvision/regnet_x_400mf", "timm/hgnetv2_b0"):
        with pytest.raises(ConfigError, match=f"'{name}': it has no form with output_stride=16; use 32"):
            build(name, output_stride=16)
    with pytest.raises(ConfigError, match="leave output_stride at 32"):
        check(BackboneConfig(name="tiny", output_stride=16))
    with pytest.raises(ConfigError, match="tiny_channels"):
        check(BackboneConfig(name="tiny", tiny_channels=()))


@pytest.mark.parametrize(
    ("word", "name", "weights"),
    [
        ("resnet50", "resnet50", None),
        ("torchvision/resnet50", "torchvision/resnet50", None),
        ("resnet50.swav", "resnet50", "swav"),
        ("timm/convnext_tiny.fb_in22k", "timm/convnext_tiny", "fb_in22k"),
        ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", "timm/vit_base_patch16_224", "augreg2_in21k_ft_in1k"),
    ],
)
def test_a_tag_behind_the_name_means_weights(word: str, name: str, weights: str | None) -> None:
    config = BackboneConfig(name=word)
    assert (config.name, config.weights) == (name, weights)
    assert config == BackboneConfig(name=name, weights=weights)
    assert BackboneConfig(name=word, weights=weights) == config
    check(config)


def test_a_tag_against_other_weights_is_a_contradiction() -> None:
    with pytest.raises(
        ConfigError, match=r"'swav', but weights='imagenet'.*use name='resnet50' and say the weights once"
    ):
        check(BackboneConfig(name="resnet50.swav", weights="imagenet"))


def test_no_name_of_a_network_has_a_dot() -> None:
    assert [name for name in backbone_names() if "." in name] == []
