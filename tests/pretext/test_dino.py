"""The mathematics of DINO as it is put together here."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pretext.dino import DINO, SelfDistillation
from pretext.recipes.dino import r50, small, tiny, vit_small
from ssldet.chance import generator
from ssldet.collapse import spread
from ssldet.data.collate import collate
from ssldet.detectors.base import DetectorConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.assemble import assemble
from ssldet.errors import ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.momentum import rising
from ssldet.recipe import check, override
from ssldet.task import learning_sections
from ssldet.testing.tasks import Photos, _photo
from ssldet.types import Batch

TASK = DINO(
    large_size=32, small_size=16, small_crops=3, hidden_width=20, bottleneck=12, prototypes=10, momentum=0.75,
    eval_side=32, warmup=0.5, teacher_temperature=0.08, frozen_last_layer=0.25,
)  # fmt: skip
VIT = DETRConfig(backbone=BackboneConfig(name="timm/vit_tiny_patch16_224", frozen_norm=False, frozen_stages=0))


def objective_of(task: DINO, detector: DetectorConfig | None = None) -> SelfDistillation:
    torch.manual_seed(0)
    built = (detector or tiny().detector).build()
    built.train_only(learning_sections(task, built))
    return task.objective(built).train()


def batch_of(task: DINO) -> Batch:
    views = task.views()
    return collate([views(_photo(number % 3), generator(number)) for number in range(5)])


def answers(objective: SelfDistillation, batch: Batch, *, teacher: bool) -> list[Tensor]:
    """One vector of similarities per crop and image, in the order of the crops; the teacher sees the large ones."""
    head = objective.teacher_head if teacher else objective.head
    network = objective.teacher_backbone if teacher else objective.detector.features
    found = []
    for crops in batch.problem.pixels[:1] if teacher else batch.problem.pixels:
        # Norms see all crops of a size at once, as in the authors' code.
        pixels = objective.detector.normalise(crops.transpose(0, 1).flatten(0, 1))
        vectors = head(network(pixels).mean(dim=(2, 3)))
        found += list(vectors.view(crops.shape[1], len(batch), -1))
    return found


def test_the_loss_is_the_papers() -> None:
    """Algorithm 1: cross-entropies of all pairs of different crops, the teacher's side centred and sharpened."""
    objective, batch = objective_of(TASK), batch_of(TASK)
    objective.loss.center.copy_(torch.randn(10, generator=generator("centre")))
    centre = objective.loss.center.clone()
    objective.begin(3, 12)
    taught, said = answers(objective, batch, teacher=True), answers(objective, batch, teacher=False)
    pairs = []
    for here, aim in enumerate(taught):
        shares = ((aim - centre[0]) / 0.06).softmax(1)
        for there, guess in enumerate(said):
            if here != there:
                pairs.append(-(shares * (guess / 0.1).log_softmax(1)).sum(1).mean())
    losses = objective(batch)
    assert len(pairs) == 2 * 4
    torch.testing.assert_close(losses.total, torch.stack(pairs).mean(), rtol=1e-4, atol=1e-5)
    centred = 0.9 * centre + 0.1 * torch.cat(taught).mean(0)
    torch.testing.assert_close(objective.loss.center, centred, rtol=1e-4, atol=1e-5)
    features = objective.describe(batch.problem.pixels[0].transpose(0, 1).flatten(0, 1))
    torch.testing.assert_close(losses.metrics["feature_std"], spread(features))


def test_the_centre_stays_outside_training() -> None:
    objective, batch = objective_of(TASK).eval(), batch_of(TASK)
    first, second = objective(batch).total, objective(batch).total
    assert torch.equal(first, second)
    assert not objective.loss.center.any()


def test_the_head_ends_in_cosines() -> None:
    head = objective_of(TASK).head
    vectors = torch.randn(6, 224, generator=generator("vectors"))
    projected = F.normalize(head.layers(vectors), dim=1)
    directions = F.normalize(head.last_layer.weight_v, dim=1)
    torch.testing.assert_close(head(vectors), projected @ directions.T)
    assert not head.last_layer.weight_g.requires_grad


def test_temperature_momentum_and_last_layer_follow_the_step() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    frozen, temperatures = [], []
    for step in (0, 2, 3, 6, 9, 12):
        objective.begin(step, 12)
        frozen.append(not objective.head.last_layer.weight_v.requires_grad)
        temperatures.append(objective._temperature)
    assert frozen == [True, True, False, False, False, False]
    assert temperatures == pytest.approx([0.04, 0.04 + 0.04 / 3, 0.06, 0.08, 0.08, 0.08])
    objective.begin(0, 12)
    objective(batch).total.backward()
    assert objective.head.last_layer.weight_v.grad is None
    assert objective.head.layers[0].weight.grad is not None


def test_the_teacher_follows_and_learns_nothing_itself() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    learning = [weight for weight in objective.parameters() if weight.requires_grad]
    ours = [*objective.detector.backbone.parameters(), *objective.head.parameters()]
    follows = [*objective.teacher_backbone.parameters(), *objective.teacher_head.parameters()]
    assert all(torch.equal(here, there) for here, there in zip(ours, follows, strict=True))
    optimizer = torch.optim.SGD(learning, lr=0.5)
    objective(batch).total.backward()
    optimizer.step()
    before = [weight.clone() for weight in follows]
    objective.begin(4, 12)
    kept = 1 - 0.25 * (1 + math.cos(math.pi / 3)) / 2
    assert rising(0.75, 4, 12) == pytest.approx(kept)
    for here, there, old in zip(ours, follows, before, strict=True):
        torch.testing.assert_close(there, kept * old + (1 - kept) * here)
        assert there.grad is None


def test_a_vision_transformer_learns_from_crops_of_two_sizes() -> None:
    objective = objective_of(TASK, VIT)
    losses = objective(batch_of(TASK))
    losses.total.backward()
    missing = [name for name, weight in objective.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not missing
    assert losses.total.isfinite()


def test_network_and_teacher_go_on_from_given_weights(tmp_path: Path) -> None:
    given = tiny().detector.build().get_submodule("backbone.body")
    with torch.no_grad():
        for weight in given.parameters():
            weight.mul_(1.25)
    save_file(dict(given.state_dict()), tmp_path / "given.safetensors")
    run = override(tiny(), {"detector.backbone.weights": str(tmp_path / "given.safetensors")})
    objective = assemble(run, Photos())
    for network in (objective.detector.get_submodule("backbone"), objective.teacher_backbone):
        found = network.get_submodule("body").state_dict()  # type: ignore[union-attr]
        assert all(torch.equal(found[name], value) for name, value in given.state_dict().items())


def test_recipes_are_whole_and_contradictions_are_refused() -> None:
    for recipe in (r50, vit_small, small, tiny):
        check(recipe())
    with pytest.raises(ConfigError, match="must be less than large_size"):
        check(replace(tiny(), task=replace(TASK, small_size=32)))
