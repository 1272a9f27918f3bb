from dataclasses import replace

import pytest
import torch

from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.errors import ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.queries import PatchQueries
from ssldet.recipe import check, from_document, override, to_document
from tests.models import TINY_DETR


def build(**options: object) -> DETR:
    return replace(TINY_DETR, **options).build().eval()  # type: ignore[arg-type]


def some_images() -> torch.Tensor:
    return torch.randn(2, 3, 48, 64)


def test_every_layer_answers_every_query() -> None:
    predictions = build()(some_images())
    assert predictions.logits.shape == (3, 2, 12, 5)
    assert predictions.boxes.shape == (3, 2, 12, 4)
    assert predictions.states.shape == (3, 2, 12, 24)
    assert predictions.groups is None
    assert predictions.boxes.min() >= 0
    assert predictions.boxes.max() <= 1


def test_what_a_detector_says_of_itself() -> None:
    detector = build()
    assert (detector.num_classes, detector.num_queries, detector.width, detector.feature_channels) == (4, 12, 24, 30)


@pytest.mark.parametrize("options", [{"pre_norm": False}, {"pre_norm": True}, {"masks": True}])
def test_sections_cover_the_state_without_overlap(options: dict[str, bool]) -> None:
    detector = build(**options)
    assert ("mask_head" in detector.sections) is ("masks" in options)
    for key in detector.state_dict():
        owners = [name for name, prefixes in detector.sections.items() if key.startswith(prefixes)]
        assert owners == [key.split(".")[0].replace("mask_attention", "mask_head")], key
    for name, prefixes in detector.sections.items():
        assert any(key.startswith(prefixes) for key in detector.state_dict()), name


def test_entries_are_as_many_as_in_the_authors_files() -> None:
    """460 with pre-norm, ours being a renaming of them; without it the encoder's last norm is absent."""
    assert len(DETRConfig().build().state_dict()) == 460
    assert len(build(pre_norm=True).state_dict()) - len(build(pre_norm=False).state_dict()) == 2


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("options", [{}, {"normalise_features": True, "position_at_input": True}])
def test_an_image_answers_the_same_alone_and_in_the_corner_of_a_canvas(
    pre_norm: bool, options: dict[str, bool]
) -> None:
    detector = build(pre_norm=pre_norm, **options)
    image = torch.randn(1, 3, 24, 40)
    canvas, padding = torch.zeros(2, 3, 48, 64), torch.ones(2, 48, 64, dtype=torch.bool)
    canvas[0, :, :24, :40], padding[0, :24, :40] = image[0], False
    canvas[1], padding[1] = torch.randn(3, 48, 64), False
    alone, together = detector(image), detector(canvas, padding)
    torch.testing.assert_close(together.boxes[:, :1], alone.boxes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.logits[:, :1], alone.logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together.boxes[:, 1], alone.boxes[:, 0], atol=1e-3)


def test_a_padding_mask_of_nothing_changes_nothing() -> None:
    detector, images = build(), some_images()
    nothing = torch.zeros(2, 48, 64, dtype=torch.bool)
    torch.testing.assert_close(detector(images, nothing).boxes, detector(images).boxes)


def test_the_mask_takes_the_size_of_the_features_whatever_the_stride() -> None:
    detector = build(backbone=BackboneConfig(name="timm/convnext_atto"))
    images, padding = torch.randn(2, 3, 75, 110), torch.zeros(2, 75, 110, dtype=torch.bool)
    padding[1, 40:] = True
    assert detector.features(images).shape[-2:] == (2, 3)
    assert detector(images, padding).boxes.isfinite().all()


def test_patch_queries_come_back_with_their_groups() -> None:
    detector = build()
    asking = PatchQueries(detector.feature_channels, detector.width, num_patches=3).eval()
    queries = asking(torch.randn(2, 2, 30), detector.default_queries(1))
    predictions = detector(some_images(), None, queries)
    assert predictions.boxes.shape == (3, 2, 8, 4)
    assert predictions.groups is not None
    assert predictions.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_patch_is_answered_without_the_others_only_where_attention_is_grouped() -> None:
    detector, images = build(), some_images()
    features = torch.randn(2, 3, 14)
    other = features.clone()
    other[:, 2] += 1
    for grouped in (True, False):
        asking = PatchQueries(14, 24, num_patches=3, grouped_attention=grouped).eval()
        first, second = (
            detector(images, None, asking(f, detector.default_queries(1))).boxes for f in (features, other)
        )
        assert torch.allclose(first[:, :, :8], second[:, :, :8], atol=1e-6) is grouped
        assert not torch.allclose(first[:, :, 8:], second[:, :, 8:], atol=1e-6)


def test_boxes_and_logits_are_in_32_bits_whatever_the_rest_runs_in() -> None:
    detector, images = build(), some_images()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector(images)
    assert mixed.boxes.dtype == mixed.logits.dtype == torch.float32
    full = detector(images)
    torch.testing.assert_close(mixed.boxes, full.boxes, atol=0.05, rtol=0)
    assert len(mixed.boxes.unique()) > 200


def test_only_the_named_sections_learn_and_the_others_rest() -> None:
    detector = replace(TINY_DETR, backbone=replace(TINY_DETR.backbone, frozen_norm=False), dropout=0.5).build()
    learning = ("projection", "decoder", "queries", "box_head")
    detector.train_only(learning)
    detector.train()
    for name, parameter in detector.named_parameters():
        assert parameter.requires_grad is (name.split(".")[0] in learning), name
    for name in detector.sections:
        assert all(detector.get_submodule(part).training is (name in learning) for part in detector.sections[name])
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    predictions = detector(some_images())
    torch.testing.assert_close(dict(detector.backbone.state_dict()), before)
    predictions.boxes.sum().backward()
    assert all(parameter.grad is None for parameter in detector.encoder.parameters())
    detector.train_only(detector.sections)
    assert detector.backbone.training
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_first_stages_stay_frozen_when_the_backbone_learns() -> None:
    detector = replace(TINY_DETR, backbone=BackboneConfig(name="resnet18", frozen_stages=1)).build()
    detector.train_only(["backbone"])
    learning = {name.split(".")[2] for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}


def test_an_unknown_section_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no section 'decodr' \(did you mean 'decoder'\?\)"):
        build().train_only(["decodr"])


def test_no_learning_parameter_is_left_without_gradient() -> None:
    detector = build().train()
    predictions = detector(some_images())
    (predictions.boxes.sum() + predictions.logits.square().sum()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_options_for_small_models_do_what_they_say_and_add_no_parameter() -> None:
    torch.manual_seed(1)
    plain = build()
    helped = build(normalise_features=True, position_at_input=True)
    assert list(helped.state_dict()) == list(plain.state_dict())
    helped.load_state_dict(plain.state_dict())
    seen: list[torch.Tensor] = []
    for detector in (plain, helped):
        detector.encoder.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[:2]))
        detector(some_images() * 30)
    cells = seen[2] - seen[3]
    torch.testing.assert_close(cells.var(-1, correction=0), torch.ones(2, 48), atol=1e-2, rtol=0)
    assert seen[0].var() > 2
    assert build(query_scale=0.3).queries.embedding.std() < 0.4


def test_a_width_that_can_not_be_shared_is_answered_with_two_that_can() -> None:
    with pytest.raises(ConfigError, match=r"width: 250 .* heads=8 .* choose width=248 or 256"):
        check(DETRConfig(width=250))
    with pytest.raises(ConfigError, match="choose width=12 or 24"):
        check(DETRConfig(width=6, heads=3))
    for right in (248, 256):
        check(DETRConfig(width=right))
    with pytest.raises(ConfigError, match="dropout"):
        check(DETRConfig(dropout=1.5))


def test_the_configuration_survives_its_document() -> None:
    changed = override(TINY_DETR, {"backbone.name": "timm/resnet18", "pre_norm": "false", "query_scale": "0.3"})
    assert from_document(DETRConfig, to_document(changed)) == changed
    assert changed.backbone.name == "timm/resnet18"


def test_the_seed_decides_the_weights() -> None:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(TINY_DETR.build().state_dict()["decoder.layers.0.linear1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
