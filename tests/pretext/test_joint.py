"""The mathematics of joint pretraining as it is put together here, and what keeps features from becoming the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pretext.joint import Joint, JointDetection, PairedPatches
from pretext.recipes.joint import deformable_tiny, tiny
from ssldet.boxes import cxcywh_to_xyxy
from ssldet.chance import generator
from ssldet.collapse import spread
from ssldet.data.collate import collate
from ssldet.data.photometric import Jitter
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.momentum import rising
from ssldet.recipe import check, override
from ssldet.task import learning_sections
from ssldet.types import Batch, Sample, Targets

TINY_TASK = tiny().task
assert isinstance(TINY_TASK, Joint)
TASK = replace(
    TINY_TASK, num_patches=5, patch_size=16, image_sides=(32,), contrast_hidden=32, contrast_width=16, queue_length=60
)
SMALL = DETRConfig(
    backbone=BackboneConfig(name="tiny", tiny_channels=(8, 16), frozen_norm=False, frozen_stages=0),
    num_classes=1,
    num_queries=10,
    width=32,
    heads=4,
    encoder_layers=0,
    decoder_layers=1,
    feedforward=32,
    dropout=0.0,
    normalise_features=True,
)


def photo(seed: int) -> Sample:
    coarse = torch.rand(1, 3, 7, 9, generator=generator("joint", seed))
    image = (255 * F.interpolate(coarse, (60, 90), mode="bilinear")[0]).to(torch.uint8)
    none = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=none, key=str(seed), original_size=(60, 90))


def objective_of(task: Joint) -> JointDetection:
    torch.manual_seed(0)
    detector = SMALL.build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).train()


def batch_of(task: Joint, number: int = 0, size: int = 4) -> Batch:
    views = task.views()
    return collate([views(photo(number * size + place), generator(number, place)) for place in range(size)])


def test_the_other_view_shows_the_place_of_the_patch_moved_a_little() -> None:
    still = Jitter(probability=0.0, grey=0.0, blur=0.0)
    ramp = torch.zeros(3, 60, 90)
    ramp[0], ramp[1] = torch.linspace(0, 255, 90), torch.linspace(0, 255, 60)[:, None]
    sample = replace(photo(0), image=ramp.to(torch.uint8))
    for shift, seeds in ((0.0, range(3)), (0.2, range(10))):
        for seed in seeds:
            made = replace(TASK, view_shift=shift, view_jitter=still).views()(sample, generator(seed))
            assert isinstance(made.problem, PairedPatches)
            assert made.problem.other_jitter is None
            if not shift:
                # The other view begins and ends with whole pixels, as the patch does.
                assert torch.equal(made.problem.pixels, made.problem.others)
                continue
            means = [views.float().mean((2, 3))[:, :2] for views in (made.problem.pixels, made.problem.others)]
            sides = (cxcywh_to_xyxy(made.targets.boxes)[:, 2:] - cxcywh_to_xyxy(made.targets.boxes)[:, :2]) * 255
            moved = (means[0] - means[1]).abs()
            assert bool((moved <= 0.2 * sides + 6).all())
            assert float(moved.max()) > 1


def test_the_contrast_finds_the_other_view_among_the_queue() -> None:
    objective, batch = objective_of(TASK), batch_of(TASK)
    queue = objective.loss.memory_bank.bank.clone()
    torch.manual_seed(1)
    followed = objective._follow(batch.problem)  # type: ignore[arg-type]
    features = objective.describe(batch.problem.pixels, batch.problem.jitter)[-1].flatten(0, 1)  # type: ignore[union-attr]
    queries = F.normalize(objective.head(features), dim=1)
    keys = F.normalize(objective.key_head(followed), dim=1)
    right = (queries * keys).sum(1, keepdim=True)
    every = torch.cat([right, queries @ queue.T], dim=1) / TASK.temperature
    expected = (every.logsumexp(1) - right[:, 0] / TASK.temperature).mean()
    torch.manual_seed(1)
    losses = objective(batch)
    torch.testing.assert_close(losses.terms["contrast"][0], expected, rtol=1e-4, atol=1e-5)
    assert losses.weights["contrast"] == TASK.contrast_weight
    torch.testing.assert_close(losses.metrics["feature_std"], spread(features))
    torch.testing.assert_close(losses.metrics["target_std"], spread(followed))
    assert torch.equal(objective.loss.memory_bank.bank[:20], keys)


def test_targets_are_those_of_the_momentum_backbone_and_get_no_gradient() -> None:
    only = {"class_weight": 0.0, "box_l1_weight": 0.0, "box_giou_weight": 0.0, "contrast_weight": 0.0}
    for detach in (True, False):
        objective, batch = objective_of(replace(TASK, detach_target=detach, mask_ratio=1.0, **only)), batch_of(TASK)
        seen: list[torch.Tensor] = []
        targets = objective._targets

        def note(entries: Any, features: torch.Tensor, seen: Any = seen, targets: Any = targets) -> Any:
            seen.append(features)
            return targets(entries, features)

        objective._targets = note  # type: ignore[method-assign]
        torch.manual_seed(1)
        objective(batch)
        torch.manual_seed(1)
        followed = objective._follow(batch.problem)  # type: ignore[arg-type]
        assert seen[0].requires_grad is not detach
        assert torch.equal(seen[0].flatten(0, 1), followed) is detach


def test_the_copies_follow_at_a_step() -> None:
    objective = objective_of(replace(TASK, momentum=0.75))
    optimizer = torch.optim.SGD([weight for weight in objective.parameters() if weight.requires_grad], lr=0.5)
    objective(batch_of(TASK)).total.backward()
    before = [weight.clone() for weight in objective.key_backbone.parameters()]
    optimizer.step()
    objective.begin(1, 9)
    ours = list(objective.detector.get_submodule("backbone").parameters())
    for old, follows, learned in zip(before, objective.key_backbone.parameters(), ours, strict=True):
        torch.testing.assert_close(follows, 0.75 * old + 0.25 * learned)
        assert follows.grad is None
    assert [rising(0.9, step, 10) for step in (0, 5, 10)] == pytest.approx([0.9, 0.95, 1.0])


STEPS = 20


def trained(task: Joint) -> tuple[float, float]:
    """Reconstruct features for some steps; return how widely those of the patches spread before and after."""
    still = replace(task, class_weight=0.0, box_l1_weight=0.0, box_giou_weight=0.0)
    objective, batches = objective_of(still), [batch_of(task, number, 3) for number in range(2)]
    optimizer = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=1.2e-2)
    widths = []
    for step in range(STEPS):
        objective.begin(step, STEPS)
        losses = objective(batches[step % 2])
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        widths.append(float(losses.metrics["feature_std"]))
    return widths[0], min(widths[-2:])


def test_features_become_the_same_without_contrast_and_not_with_it() -> None:
    attached = replace(TASK, detach_target=False)
    first, alone = trained(replace(attached, contrast_weight=0.0))
    _, contrasted = trained(attached)
    assert alone < 0.7 * first
    assert contrasted > 0.8 * first


@pytest.mark.parametrize("recipe", [tiny, deformable_tiny])
def test_a_frozen_backbone_is_refused_with_the_remedy(recipe: Any) -> None:
    run: Run = recipe()
    check(run)
    with pytest.raises(ConfigError, match="use random_query_patch"):
        check(override(run, {"task.freeze_backbone": True}))
    with pytest.raises(ConfigError, match=r"detector\.backbone\.frozen_norm=false"):
        check(override(run, {"detector.backbone.frozen_norm": True}))
