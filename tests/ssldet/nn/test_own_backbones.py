"""A network of the user's own behind the door of backbones."""

import sys
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ssldet
from downstream.annotations.shapes import write_shapes
from pretext.random_query_patch import RandomQueryPatch
from ssldet import registry
from ssldet.engine.assemble import assemble
from ssldet.errors import ConfigError
from ssldet.nn.backbones import Backbone, BackboneConfig, build_backbone, original_state, own
from ssldet.source import Source
from ssldet.task import learning_sections
from ssldet.types import Sample, Targets
from ssldet.verbs import plan_pretraining


class Pyramid(nn.Module):
    mean = (0.1, 0.2, 0.3)
    std = torch.tensor([0.5, 0.6, 0.7])

    def __init__(self, answer: type = dict) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, stride=4, padding=1), nn.BatchNorm2d(5))
        self.second = nn.Conv2d(5, 7, 3, stride=2, padding=1)
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        fine = self.first(images).relu()
        coarse = self.second(fine)
        if self.answer is dict:
            return OrderedDict(fine=fine, coarse=coarse)
        return coarse if self.answer is Tensor else self.answer([fine, coarse])


class Sideways(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


@pytest.fixture(autouse=True)
def nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(own, "_registered", {})
    yield
    registry._claims.cache_clear()


def build(name: str, **options: object) -> Backbone:
    return build_backbone(BackboneConfig(name=name, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("answer", "channels"), [(dict, (5, 7)), (list, (5, 7)), (tuple, (5, 7)), (Tensor, (7,))])
def test_a_network_may_answer_with_a_level_a_list_or_a_dictionary(answer: type, channels: tuple[int, ...]) -> None:
    ssldet.register_backbone("mine", lambda: Pyramid(answer))
    backbone = build("mine", frozen_stages=0)
    levels = backbone.levels(torch.randn(2, 3, 33, 50))
    assert backbone.level_channels == tuple(level.shape[1] for level in levels) == channels
    assert backbone.level_strides == ((4, 8) if len(channels) == 2 else (8,))
    assert backbone.mean == pytest.approx((0.1, 0.2, 0.3))
    assert backbone.std == pytest.approx((0.5, 0.6, 0.7))
    assert backbone.channels == 7


def test_each_backbone_gets_a_copy_with_the_networks_own_weights_and_statistics() -> None:
    network = Pyramid()
    network.first[1].running_mean.fill_(3)
    network.second.bias.requires_grad_(False)
    ssldet.register_backbone("mine", network)
    first, second = build("mine"), build("mine")
    assert first.body.second is not second.body.second
    torch.testing.assert_close(first.body.second.weight, network.second.weight)
    assert first.keeps_weights
    assert [name for name, parameter in first.body.named_parameters() if parameter.requires_grad] == ["second.weight"]
    assert "first.1.num_batches_tracked" not in first.body.state_dict()
    network.load_state_dict(original_state(first))
    assert network.first[1].running_mean.tolist() == [3] * 5


class Images(Source):
    classes = ()
    fingerprint = "noise"
    skipped = ()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        pixels = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        return Sample(image=pixels, targets=nothing, key=str(index), original_size=(70, 90))


def test_its_weights_are_not_calibrated_away() -> None:
    network = Pyramid()
    run = ssldet.compose(pretext="random_query_patch/tiny", backbone=network)
    assert (run.detector.backbone.name, run.detector.backbone.weights) == ("Pyramid", None)
    objective = assemble(run, Images())
    assert "backbone" in learning_sections(run.task, objective.detector)
    torch.testing.assert_close(objective.detector.backbone.body.first[1].running_var, torch.ones(5))
    torch.testing.assert_close(objective.detector.backbone.body.second.weight, network.second.weight)


def test_composing_twice_keeps_one_name_for_one_network_and_two_for_two() -> None:
    first, second = Pyramid(), Pyramid()
    names = [ssldet.compose(pretext="random_query_patch", backbone=n).detector.backbone.name for n in (first, second)]
    assert names == ["Pyramid", "Pyramid-2"]
    again = ssldet.compose(pretext="random_query_patch", backbone=first)
    assert again.detector.backbone.name == "Pyramid"


def test_an_installed_package_offers_backbones_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_networks.py").write_text("from torch import nn\nnet = lambda: nn.Conv2d(3, 6, 4, stride=4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint(name="theirs", value="their_networks:net", group="ssldet.backbones")
    registry._claims.cache_clear()
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    assert (build("theirs", frozen_stages=0).channels, build("theirs", frozen_stages=0).stride) == (6, 4)


def test_a_name_that_nobody_registered_here_says_what_to_call() -> None:
    with pytest.raises(
        ConfigError, match=r"no backbone 'mine'.*call ssldet.register_backbone\('mine', NETWORK\) first"
    ):
        build("mine")


@pytest.mark.parametrize("name", ["resnet50", "tiny", "resnet26d", "my.net", "a/b", ""])
def test_names_of_other_networks_and_odd_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="backbone name"):
        ssldet.register_backbone(name, Pyramid())


def test_what_can_not_serve_is_refused_with_its_reason() -> None:
    ssldet.register_backbone("sideways", Sideways())
    ssldet.register_backbone("broken", lambda: 1 / 0)
    ssldet.register_backbone("leaving", lambda: sys.exit(3))
    ssldet.register_backbone("number", lambda: 5)  # type: ignore[arg-type,return-value]
    ssldet.register_backbone("grey", nn.Conv2d(3, 4, 32, stride=32))
    with pytest.raises(ConfigError, match=r"'sideways': answers images B 3 H W with \(1, 12288\) instead of levels"):
        build("sideways", frozen_stages=0)
    with pytest.raises(ConfigError, match="'broken': its factory fails: ZeroDivisionError"):
        build("broken")
    with pytest.raises(ConfigError, match="'leaving': its factory fails: SystemExit: 3"):
        build("leaving")
    with pytest.raises(ConfigError, match="'number': its factory returns 'int'"):
        build("number")
    with pytest.raises(ConfigError, match="'grey': it has no form with output_stride=16"):
        build("grey", output_stride=16, frozen_stages=0)
    network = Pyramid()
    network.mean = (0.5,)  # type: ignore[assignment]
    ssldet.register_backbone("grey", network)
    with pytest.raises(ConfigError, match=r"its attribute 'mean' is \(0.5,\); make it three numbers"):
        build("grey")
    ssldet.register_backbone("coarse", nn.Sequential(nn.Conv2d(3, 4, 32, stride=32)))
    with pytest.raises(ConfigError, match=r"frozen_stages=1 would freeze nothing.*use frozen_stages=0"):
        build("coarse")


def test_an_own_network_learns_whether_it_is_named_or_given(tmp_path: Path) -> None:
    ssldet.register_backbone("mine", Pyramid())
    named = ssldet.compose(pretext="random_query_patch/small", backbone="mine")
    given = ssldet.compose(pretext="random_query_patch/small", backbone=Pyramid())
    for run in (named, given):
        assert run.task.freeze_backbone is False
        assert (run.detector.backbone.weights, run.detector.backbone.frozen_stages) == (None, 0)
    kept = ssldet.compose(pretext=RandomQueryPatch(freeze_backbone=True), backbone="mine")
    assert kept.task.freeze_backbone is True
    write_shapes(tmp_path / "made", images=3, seed=1)
    choices = {"backbone": "mine", "recipe": "random_query_patch/tiny", "out": tmp_path / "run", "val": "none"}
    images = tmp_path / "made" / "images"
    assert plan_pretraining(images, **choices).changes["task.freeze_backbone"] is False
    frozen = plan_pretraining(images, **choices, overrides={"task.freeze_backbone": "true"})
    assert frozen.learning < plan_pretraining(images, **choices).learning
