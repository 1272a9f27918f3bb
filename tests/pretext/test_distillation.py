"""The mathematics of dense distillation as it is put together here."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pretext.distillation import Agreement, DenseAlignment, Distillation
from pretext.networks import resting_network
from pretext.recipes.distillation import deformable_r50, deformable_tiny, r50, small, tiny
from ssldet.chance import generator
from ssldet.data.collate import collate
from ssldet.detectors.base import DetectorConfig
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.nn.padding import resize_padding
from ssldet.recipe import check, override
from ssldet.task import learning_sections, transferred_sections
from ssldet.testing.tasks import _photo
from ssldet.types import Batch

TASK = tiny().task
assert isinstance(TASK, Distillation)


def objective_of(task: Distillation, config: DetectorConfig) -> DenseAlignment:
    torch.manual_seed(0)
    detector = config.build()
    detector.train_only(learning_sections(task, detector))
    return task.objective(detector).eval()


def batch_of(task: Distillation, *, training: bool = True) -> Batch:
    views = task.views(training=training)
    return collate([views(_photo(number), generator(number)) for number in range(3)])


def cosines(objective: DenseAlignment, batch: Batch) -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    """For each part and map: cosines of the cells that show the image, the teacher's directions there, their image."""
    detector, teacher = objective.detector, resting_network(objective.task.teacher)
    levels = detector.levels(detector.normalise(batch.images, batch.padding))
    taught = teacher(teacher.normalise(batch.images, batch.padding))
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for part, maps in {"backbone": levels[-1:], "encoder": detector.memory(levels, batch.padding)}.items():
        for level in maps:
            aim = F.interpolate(taught, level.shape[2:], mode="bilinear", antialias=True)
            head = objective.heads[part]
            named = torch.einsum("bdhw,ed->behw", level, head.weight[:, :, 0, 0]) + head.bias[:, None, None]
            shows = ~resize_padding(batch.padding, level)
            rows = [some.permute(0, 2, 3, 1)[shows] for some in (named, aim)]
            alike = (rows[0] * rows[1]).sum(1) / (rows[0].norm(dim=1) * rows[1].norm(dim=1))
            found.setdefault(part, []).append((alike, F.normalize(rows[1], dim=1), shows.nonzero()[:, 0]))
    return found


@pytest.mark.parametrize("recipe", [tiny, deformable_tiny])
def test_the_loss_is_one_minus_the_mean_cosine_of_the_cells_that_show_an_image(recipe: Any) -> None:
    objective, batch = objective_of(TASK, recipe().detector), batch_of(TASK)
    assert bool(batch.padding.any())
    losses, expected = objective(batch), cosines(objective, batch)
    assert losses.terms.keys() == {"backbone", "encoder"}
    for part, maps in expected.items():
        mean = torch.cat([alike for alike, _, _ in maps]).mean()
        torch.testing.assert_close(losses.terms[part][0], 1 - mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses.metrics[f"{part}_agreement"], mean.detach(), rtol=1e-4, atol=1e-5)
    assert len(expected["encoder"]) == (1 if recipe is tiny else 2)


def test_the_agreement_is_measured_beside_the_best_constant_vector() -> None:
    objective, evaluator = objective_of(TASK, deformable_tiny().detector), Agreement()
    batch = batch_of(TASK, training=False)
    with torch.no_grad():
        evaluator.update(objective.answer(batch), batch)
        results, expected = evaluator.results(), cosines(objective, batch)
    for part, maps in expected.items():
        alike, directions = (torch.cat([one[place] for one in maps]) for place in (0, 1))
        best = F.normalize(directions.mean(0), dim=0)
        assert results[f"{part}_agreement"] == pytest.approx(float(alike.mean()), abs=1e-4)
        assert results[f"{part}_agreement_constant"] == pytest.approx(float((directions @ best).mean()), abs=1e-4)
    assert results["agreement"] == results["encoder_agreement"]
    assert results["agreement_constant"] == results["encoder_agreement_constant"]


def test_a_student_that_is_its_teacher_agrees_wholly() -> None:
    teacher = BackboneConfig(name="tiny", tiny_channels=(6, 10), frozen_stages=0)
    task = replace(TASK, teacher=teacher, encoder_weight=0.0)
    objective = objective_of(task, replace(tiny().detector, backbone=teacher))
    objective.detector.get_submodule("backbone").load_state_dict(resting_network(teacher).state_dict())
    head = objective.heads["backbone"]
    with torch.no_grad():
        head.weight.copy_(torch.eye(16)[:, :, None, None])
        head.bias.zero_()
        losses = objective(batch_of(task))
    assert losses.terms.keys() == {"backbone"}
    assert float(losses.total) == pytest.approx(0, abs=1e-4)


def test_the_teacher_takes_its_weights_from_a_file_and_never_learns(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    given = BackboneConfig(name="tiny", tiny_channels=(6, 10), frozen_stages=0, weights=str(path))
    with pytest.raises(CheckpointError):
        resting_network(given)
    state = {
        name: 1.5 * value for name, value in resting_network(replace(given, weights=None)).body.state_dict().items()
    }
    save_file(state, path)
    objective = objective_of(replace(TASK, teacher=given), tiny().detector).train()
    teacher = resting_network(given)
    assert all(torch.equal(value, state[name]) for name, value in teacher.body.state_dict().items())
    objective(batch_of(TASK)).total.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not teacher.training
    assert not any("teacher" in name for name in objective.state_dict())


def test_only_what_encodes_learns_and_is_handed_over() -> None:
    detector = deformable_tiny().detector.build()
    assert set(transferred_sections(TASK, detector)) == {"backbone", "projection", "encoder"}
    frozen = replace(TASK, freeze_backbone=True)
    assert set(learning_sections(frozen, detector)) == {"projection", "encoder"}
    assert set(frozen.objective(detector).heads) == {"encoder"}


def test_recipes_are_whole_and_contradictions_are_refused() -> None:
    for recipe in (r50, deformable_r50, small, tiny, deformable_tiny):
        check(recipe())
    for wrong, said in (
        ({"task.encoder_weight": 0, "task.backbone_weight": 0}, "nothing is left to align"),
        ({"task.encoder_weight": 0, "task.freeze_backbone": True}, "nothing is left to align"),
        ({"detector.backbone.frozen_norm": True}, "learns with its norms"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(override(tiny(), wrong))
