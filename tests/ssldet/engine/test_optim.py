"""Optimiser groups, schedules, clipping and averaging."""

import copy
import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import nn

from downstream.detection import Detection
from ssldet.engine.optim import average_of, build_optimizer, clip, gradient_norm, learning, schedule, set_rates, take_up
from ssldet.engine.run import OptimConfig
from ssldet.engine.steps import plain
from ssldet.errors import ConfigError
from ssldet.weights.deformable_detr_names import to_authors
from tests.models import SMALL_DEFORMABLE_DETR


def test_the_backbone_has_its_own_rate_and_what_rests_is_left_out(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    config = OptimConfig(lr=0.5, lr_backbone=0.25, weight_decay=0.125)
    both = build_optimizer(objective, config)
    assert [(group["lr"], group["peak"], group["weight_decay"]) for group in both.param_groups] == [
        (0.5, 0.5, 0.125),
        (0.25, 0.25, 0.125),
    ]
    assert {id(p) for p in both.param_groups[1]["params"]} == {id(p) for p in objective.detector.backbone.parameters()}
    assert len(learning(both)) == len(list(objective.parameters()))
    objective.detector.train_only(("box_head",))
    resting = build_optimizer(objective, config)
    assert len(resting.param_groups) == 1
    assert len(learning(resting)) == 4
    objective.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing would learn"):
        build_optimizer(objective, config)


@pytest.mark.parametrize("two_stage", [False, True])
def test_layers_that_say_where_to_look_have_a_rate_of_their_own_if_it_differs(two_stage: bool) -> None:
    detector = replace(SMALL_DEFORMABLE_DETR, refine_boxes=two_stage, two_stage=two_stage).build()
    objective = Detection().objective(detector)
    alike = build_optimizer(objective, OptimConfig(lr=0.5, lr_backbone=0.25))
    assert [group["peak"] for group in alike.param_groups] == [0.5, 0.25]
    apart = build_optimizer(objective, OptimConfig(lr=0.5, lr_backbone=0.25, lr_sampling_factor=0.125))
    assert [group["peak"] for group in apart.param_groups] == [0.5, 0.25, 0.0625]
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    slow = {names[id(parameter)] for parameter in apart.param_groups[2]["params"]}
    # By the names in the authors' files, which they choose them by.
    authors = to_authors({name: torch.full((), float(place)) for place, name in enumerate(detector.state_dict())})
    ours = list(detector.state_dict())
    chosen = {
        ours[int(place)] for name, place in authors.items() if "sampling_offsets" in name or "reference_points" in name
    }
    assert slow == chosen
    assert len(slow) == 2 * (2 + 3 + (not two_stage))
    assert len(learning(apart)) == len(learning(alike))


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("lars", "Lars")])
def test_the_optimiser_is_a_choice(fakes: ModuleType, name: str, kind: str) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetector(2, 3))
    config = OptimConfig(optimizer=name, momentum=0.75, lr=0.5, lr_backbone=0.25, weight_decay=0.125)  # type: ignore[arg-type]
    optimizer = build_optimizer(objective, config)
    assert type(optimizer).__name__ == kind
    assert [(group["lr"], group["peak"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.5, 0.5, 0.125),
        (0.25, 0.25, 0.125),
    ]
    assert name == "adamw" or {group["momentum"] for group in optimizer.param_groups} == {0.75}
    before = [parameter.detach().clone() for parameter in learning(optimizer)]
    for parameter in learning(optimizer):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, learning(optimizer), strict=True))
    plain(optimizer.state_dict())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_pass_over_all_tensors_is_the_same_step(fakes: ModuleType, name: str) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetector(2, 3))
    twin = copy.deepcopy(objective)
    plain_config = OptimConfig(optimizer=name, lr=0.1, lr_backbone=0.1)  # type: ignore[arg-type]
    ours, theirs = build_optimizer(objective, plain_config), build_optimizer(twin, replace(plain_config, fused="on"))
    assert {group["fused"] for group in ours.param_groups} == {None}
    assert {group["fused"] for group in theirs.param_groups} == {True}
    for _ in range(3):
        for one, other in zip(learning(ours), learning(theirs), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for one, other in zip(learning(ours), learning(theirs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_an_optimiser_keeps_its_own_form_when_it_goes_on(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetector(2, 3))
    config = OptimConfig()
    for before, after in ((config, replace(config, fused="on")), (replace(config, fused="on"), config)):
        old, new = build_optimizer(objective, before), build_optimizer(objective, after)
        for parameter in learning(old):
            parameter.grad = torch.ones_like(parameter)
        old.step()
        take_up(new, old.state_dict())
        assert {group["fused"] for group in new.param_groups} == {True if after.fused == "on" else None}
        new.step()
        assert {int(state["step"]) for state in new.state.values()} == {2}


def test_rates_follow_the_schedule(fakes: ModuleType) -> None:
    step = schedule(OptimConfig(schedule="step", drops=(2 / 3, 0.9), drop_factor=0.5), 300)
    assert [step(k) for k in (0, 199, 200, 269, 270, 299)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    cosine = schedule(OptimConfig(schedule="cosine", warmup_steps=4), 104)
    assert [cosine(k) for k in (0, 1, 3, 4)] == [0.25, 0.5, 1, 1]
    assert cosine(54) == pytest.approx(0.5)
    assert cosine(104) == pytest.approx(0)
    assert cosine(29) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    constant = schedule(OptimConfig(schedule="constant", warmup_steps=2), 10)
    assert [constant(k) for k in (0, 1, 9)] == [0.5, 1, 1]
    optimizer = build_optimizer(
        fakes.FakeTask().objective(fakes.FakeDetector(2, 3)), OptimConfig(lr=2.0, lr_backbone=1.0)
    )
    for factor in (0.5, 0.25):
        set_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [2 * factor, factor]


def test_the_whole_gradient_is_clipped_at_once() -> None:
    a, b, untouched = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    parameters = [a, b, untouched]
    norm = gradient_norm(parameters)
    assert float(norm) == 5
    clip(parameters, norm, 0.0)
    assert float(gradient_norm(parameters)) == 5
    clip(parameters, norm, 10.0)
    assert float(gradient_norm(parameters)) == 5
    clip(parameters, norm, 0.1)
    assert float(gradient_norm(parameters)) == pytest.approx(0.1, rel=1e-4)
    assert float(gradient_norm([untouched])) == 0


def test_the_average_follows(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetector(2, 3))
    average = average_of(objective, 0.75)
    name = "detector.box_head.bias"
    bias = objective.detector.box_head.bias
    for value, expected in ((1.0, 1.0), (5.0, 2.0), (2.0, 2.0)):
        with torch.no_grad():
            bias.fill_(value)
        average.update_parameters(objective)
        assert torch.equal(average.module.state_dict()[name], torch.full((4,), expected))


def test_a_ramped_average_follows_closely_at_first_and_goes_on_where_it_was(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetector(2, 3))
    average = average_of(objective, 0.75, ramp=3.0)
    bias = objective.detector.box_head.bias
    followed, expected = [], [8.0]
    for step, value in enumerate((8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)):
        if step == 3:
            resumed = average_of(objective, 0.75, ramp=3.0)
            resumed.load_state_dict(average.state_dict())
            average = resumed
        with torch.no_grad():
            bias.fill_(value)
        average.update_parameters(objective)
        followed.append(average.module.detector.box_head.bias[0].item())
    # The first update copies; then (1 + t) / (3 + t) of the old average is kept, until that exceeds the decay.
    for step in range(1, 7):
        expected.append(expected[-1] * min(0.75, (1 + step) / (3 + step)))
    assert followed == pytest.approx(expected)


@pytest.mark.parametrize("ramp", [0.0, 3.0])
def test_an_average_does_not_wait_for_its_count_on_the_device(fakes: ModuleType, ramp: float) -> None:
    average = average_of(fakes.FakeTask().objective(fakes.FakeDetector(2, 3)), 0.75, ramp=ramp)
    assert average.multi_avg_fn is not None
    # A tensor without content, which nobody can read.
    average.multi_avg_fn((torch.zeros(2),), (torch.ones(2),), torch.zeros((), device="meta"))
    assert average.n_averaged.device.type == "cpu"
