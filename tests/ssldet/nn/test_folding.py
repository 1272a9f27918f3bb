"""A frozen backbone computes with its norms inside its convolutions, and nobody notices but the clock."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from ssldet.nn.backbones import Backbone, BackboneConfig, FixedNorm, Network, build_backbone, calibrate


def frozen(backbone: Backbone) -> Backbone:
    torch.manual_seed(1)
    calibrate(backbone, torch.randn(2, 3, 64, 64))
    for name, buffer in backbone.named_buffers():
        if name.endswith(("weight", "bias")):
            buffer.add_(torch.rand_like(buffer) / 4)
    return backbone.requires_grad_(False).eval()


def build(name: str) -> Backbone:
    return frozen(build_backbone(BackboneConfig(name=name, frozen_stages=0)))


@contextmanager
def plain(backbone: Backbone) -> Iterator[None]:
    """Compute as written."""
    backbone._folds = False
    yield
    backbone._folds = True


def largest_difference(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "timm/tf_efficientnet_lite0", "mobilenet_v3_small"])
def test_levels_are_those_of_the_network_as_written(name: str) -> None:
    backbone, images = build(name), torch.randn(3, 3, 70, 90)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    folded = backbone.levels(images)
    copy = backbone._folded._copy
    assert copy is not None
    assert not any(isinstance(part, FixedNorm) for part in copy.modules())
    with plain(backbone):
        written = backbone.levels(images)
    exact = tuple(level.float() for level in backbone._run(deepcopy(backbone.body).double(), images.double()))
    assert largest_difference(folded, exact) <= max(1e-5, 1.5 * largest_difference(written, exact))
    assert all(level.stride()[1] == 1 for level in folded)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_copy_follows_the_weights() -> None:
    backbone, other, images = build("resnet18"), build("resnet18"), torch.randn(1, 3, 64, 64)
    first = backbone.levels(images)
    copy = backbone._folded._copy
    assert backbone.levels(images)[-1].equal(first[-1])
    assert backbone._folded._copy is copy
    torch.nn.init.normal_(other.body.conv1.weight)
    backbone.load_state_dict(other.state_dict())
    assert largest_difference(backbone.levels(images), other.levels(images)) == 0
    backbone.body.layer1[0].bn1.weight.mul_(2)
    with plain(backbone):
        wanted = backbone.levels(images)
    assert largest_difference(backbone.levels(images), wanted) < 1e-5
    backbone.body.conv1.weight = nn.Parameter(torch.randn_like(backbone.body.conv1.weight), requires_grad=False)
    with plain(backbone):
        wanted = backbone.levels(images)
    assert largest_difference(backbone.levels(images), wanted) < 1e-5


def test_what_learns_trains_or_is_watched_is_computed_as_written() -> None:
    backbone, images = build("resnet18"), torch.randn(1, 3, 64, 64)
    seen: list[str] = []
    hook = backbone.body.bn1.register_forward_hook(lambda *_: seen.append("norm"))
    backbone.levels(images)
    assert seen == ["norm"]
    hook.remove()
    backbone.train().levels(images)
    backbone.eval().requires_grad_(True)
    assert backbone.levels(images)[-1].requires_grad
    assert backbone._folded._copy is None


def test_copies_and_pickles_begin_without_a_folded_copy() -> None:
    backbone, images = build("tiny"), torch.randn(1, 3, 64, 64)
    backbone._folds = True
    levels = backbone.levels(images)
    assert backbone._folded._copy is not None
    for twin in (deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert twin._folded._copy is None
        assert largest_difference(twin.levels(images), levels) == 0


class ReadTwice(nn.Module):
    """A convolution whose result a norm reads, and something else as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, stride=4, padding=1), FixedNorm(5)

    def forward(self, images: Tensor) -> Tensor:
        read = self.conv(images)
        normed: Tensor = self.norm(read)
        return normed + read


def test_a_convolution_that_something_else_reads_keeps_its_weights() -> None:
    backbone = frozen(Backbone(Network(body=ReadTwice(), run=lambda body, images: [body(images)])))
    images = torch.randn(1, 3, 64, 64)
    levels = backbone.levels(images)
    assert backbone._folded._copy is None
    with plain(backbone):
        assert largest_difference(levels, backbone.levels(images)) == 0
