"""One-shot detection on the one engine: what is taken over, what is learned, measured and looked for."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ssldet
from downstream.annotations.coco import open_coco
from downstream.annotations.one_shot import EvaluationPairs
from downstream.annotations.shapes import write_shapes
from downstream.detection import Detection
from downstream.one_shot import OneShot, QueryDetection
from downstream.recipes import one_shot as recipes
from pretext.random_query_patch import RandomQueryPatch
from ssldet.boxes import pairwise_iou, to_absolute
from ssldet.data.collate import collate
from ssldet.data.images import ImageRules, open_images
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.checkpoint import inherit
from ssldet.errors import CheckpointError, ConfigError, DataError
from ssldet.nn.backbones import BackboneConfig
from ssldet.patches import PatchObjective
from ssldet.recipe import check, dumps, load, override
from ssldet.types import Batch

TASK = OneShot(
    unseen=("triangle",),
    patch_size=24,
    scales=(48,),
    max_size=80,
    eval_scale=48,
    crop_scales=(60,),
    crop_range=(40, 60),
)
DETECTOR = DETRConfig(
    backbone=BackboneConfig(name="tiny", frozen_norm=False, frozen_stages=0, tiny_channels=(8, 12)),
    num_classes=1,
    num_queries=12,
    width=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
    dropout=0.0,
)
SMALL = {"data.batch_size": 4, "data.workers": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-shot")
    write_shapes(folder / "made", images=12, seed=3)
    return folder


@pytest.fixture(scope="module")
def labelled(place: Path) -> str:
    return f"coco:{place}/made/instances.json:{place}/made/images"


@pytest.fixture(scope="module")
def pretrained(place: Path) -> ssldet.Trained:
    recipe, images = "random_query_patch/tiny", place / "made" / "images"
    return ssldet.pretrain(images, recipe=recipe, steps=2, out=place / "pre", overrides=SMALL)


@pytest.fixture(scope="module")
def taught(pretrained: ssldet.Trained, labelled: str, place: Path) -> ssldet.Trained:
    out = place / "one"
    return pretrained.finetune(labelled, val=labelled, recipe="one_shot/tiny", steps=3, out=out, overrides=SMALL)


def batch_of(place: Path) -> Batch:
    source = open_coco(str(place / "made" / "instances.json"), ImageRules(min_side=17, max_pixels=10**6))
    pairs, views = TASK.prepare(source), TASK.views(training=False)
    return collate([views(pairs[number], torch.Generator()) for number in range(3)])


def test_the_feature_is_added_to_every_query(place: Path) -> None:
    objective = TASK.objective(DETECTOR.build()).eval()
    assert isinstance(objective, QueryDetection)
    asked = []
    objective.detector.decoder.register_forward_pre_hook(lambda _, inputs: asked.append(inputs))
    batch = batch_of(place)
    objective.answer(batch)
    content, position = asked[0][:2]
    added = position - objective.detector.queries.embedding
    assert not content.any()
    assert added.abs().amax() > 1e-3
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-6)
    assert not torch.allclose(added[0], added[1], atol=1e-4)


def test_one_batch_can_be_learned(place: Path) -> None:
    objective, batch = TASK.objective(DETECTOR.build()), batch_of(place)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    totals = []
    for _ in range(30):
        loss = objective(batch).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        totals.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in objective.patch_queries.parameters())
    assert sum(totals[-5:]) / 5 < 0.9 * totals[0]


def test_one_image_has_another_answer_for_another_query(place: Path) -> None:
    """What is learned depends on the query: the same image, asked twice, ends in two different boxes."""
    source = open_coco(str(place / "made" / "instances.json"), ImageRules(min_side=17, max_pixels=10**6))
    pairs, views = TASK.prepare(source, training=False), TASK.views(training=False)
    assert isinstance(pairs, EvaluationPairs)
    two = next(n for n in range(len(pairs)) if pairs.pairs[n][0] == pairs.pairs[n + 1][0])
    batch = collate([views(pairs[number], torch.Generator()) for number in (two, two + 1)])
    assert torch.equal(batch.images[0], batch.images[1])
    detector = replace(DETECTOR, width=32, normalise_features=True, query_scale=0.3).build()
    objective = replace(TASK, normalise_patches=True, no_object_weight=1.0).objective(detector)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(150):
        loss = objective(batch).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    truth = [to_absolute(one.boxes, (64, 64)) for one in batch.targets]
    for number, found in enumerate(objective.eval().answer(batch)):
        best = found.boxes[found.scores.argmax()][None]
        assert pairwise_iou(best, truth[number]).max() > 0.6
        assert pairwise_iou(best, truth[1 - number]).max() < 0.4


def test_the_projection_and_what_shapes_it_come_from_pretraining(
    pretrained: ssldet.Trained, labelled: str, place: Path
) -> None:
    changes = {**SMALL, "optim.lr": 0.0, "optim.lr_backbone": 0.0}
    run = pretrained.finetune(labelled, recipe=recipes.tiny(), steps=1, out=place / "still", overrides=changes)
    before, after = (ssldet.verbs.opening.open_model(path).objective for path in (pretrained.path, run.path))
    for name in ("weight", "bias"):
        ours = after.get_parameter(f"patch_queries.projection.{name}")
        assert torch.equal(ours, before.get_parameter(f"patch_queries.projection.{name}"))
    rows = json.loads((run.path / "transfer.json").read_text())["rows"]
    (row,) = (row for row in rows if row["section"] == "patch_queries")
    assert (row["outcome"], row["tensors"]) == ("loaded", 2)
    other = recipes.tiny()
    other = replace(other, task=replace(other.task, normalise_patches=False))  # type: ignore[type-var]
    again = pretrained.finetune(labelled, recipe=other, steps=1, out=place / "other", overrides=SMALL)
    assert again.run.task.normalise_patches


def test_a_start_without_a_projection_leaves_it_fresh_and_a_strange_one_is_refused() -> None:
    ours = TASK.objective(DETECTOR.build())
    before = ours.get_parameter("patch_queries.projection.weight").clone()
    (row,) = inherit(Detection().objective(DETECTOR.build()), ours, TASK.stage.parts)
    assert (row.section, row.outcome, row.tensors) == ("patch_queries", "fresh", 2)
    wider = RandomQueryPatch(num_patches=4).objective(replace(DETECTOR, width=32).build())
    with pytest.raises(CheckpointError, match=r"patch_queries.projection.weight has shape \[32, \d+\] instead of \[16"):
        inherit(wider, ours, TASK.stage.parts)
    assert torch.equal(ours.get_parameter("patch_queries.projection.weight"), before)


def test_training_leaves_both_figures_and_a_binary_head(taught: ssldet.Trained) -> None:
    assert taught.detector().num_classes == 1
    assert {"AP50_unseen", "AP50_seen", "per_class"} <= taught.results.keys()
    assert set(taught.results["per_class"]) == {"circle", "square", "triangle"}
    assert list((taught.path / "previews").glob("*.png"))
    assert "no preview" not in (taught.path / "train.log").read_text()


def test_evaluation_is_that_of_the_run_whatever_the_batch(taught: ssldet.Trained, labelled: str, place: Path) -> None:
    one, five = (
        taught.evaluate(labelled, batch_size=size, workers=0, save_predictions=place / f"found{size}.json")
        for size in (1, 5)
    )
    assert one.pop("per_class") == pytest.approx(five.pop("per_class"), abs=1e-6)
    assert one == pytest.approx(five, abs=1e-6)
    assert one["AP50_unseen"] == pytest.approx(taught.results["AP50_unseen"], abs=1e-6)
    found = [json.loads((place / f"found{size}.json").read_text()) for size in (1, 5)]
    for a, b in zip(*found, strict=True):
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])


def test_evaluation_asks_as_it_is_told(taught: ssldet.Trained, labelled: str) -> None:
    changed = taught.evaluate(labelled, workers=0, metric="coco", overrides={"task.unseen": "circle,square"})
    assert changed["AP50_unseen"] == pytest.approx(
        (changed["per_class"]["circle"] + changed["per_class"]["square"]) / 2
    )
    with pytest.raises(ConfigError, match=re.escape("data.train: only fields of the task")):
        taught.evaluate(labelled, overrides={"data.train": "x"})
    with pytest.raises(DataError, match="no class 'cat'"):
        taught.evaluate(labelled, overrides={"task.unseen": "cat"})


def test_a_patch_of_anything_is_looked_for(taught: ssldet.Trained, place: Path) -> None:
    patches = []
    for name, size in (("a.png", (15, 9)), ("b.png", (20, 40))):
        patches.append(place / name)
        Image.effect_noise(size, 80).convert("RGB").save(patches[-1])
    answer = taught.predict(place / "made" / "images", query=list(map(str, patches)), out=place / "found")
    assert {row["category"] for row in answer["predictions"]} == {"a.png", "b.png"}
    assert len(answer["predictions"]) == 12 * 2 * 10
    with pytest.raises(ConfigError, match="add --query"):
        taught.predict(place / "made" / "images")


def test_looking_for_a_query_is_detecting_with_it(place: Path) -> None:
    objective, batch = TASK.objective(DETECTOR.build()).eval(), batch_of(place)
    assert isinstance(objective, PatchObjective)
    assert batch.problem.pixels is not None
    for number, found in enumerate(objective.answer(batch)):
        (again,) = objective.localise(collate_one(batch, number), [batch.problem.pixels[number, 0]])
        assert torch.allclose(again.boxes, found.boxes, atol=1e-3)
        assert torch.allclose(again.scores, found.scores, atol=1e-5)


def collate_one(batch: Batch, number: int) -> Batch:
    part = slice(number, number + 1)
    return replace(
        batch,
        images=batch.images[part],
        padding=batch.padding[part],
        sizes=batch.sizes[part],
        targets=batch.targets[part],
        keys=batch.keys[part],
        original_sizes=batch.original_sizes[part],
    )


def test_plain_images_are_refused(place: Path) -> None:
    source = open_images([str(place / "made" / "images")], ImageRules(min_side=17, max_pixels=10**6))
    for training in (True, False):
        with pytest.raises(DataError, match="no labelled boxes"):
            TASK.prepare(source, training=training)


def test_evaluation_pairs_follow_the_task(place: Path) -> None:
    source = open_coco(str(place / "made" / "instances.json"), ImageRules(min_side=17, max_pixels=10**6))
    every = replace(TASK, absent=True).prepare(source, training=False)
    some = TASK.prepare(source, training=False)
    assert isinstance(every, EvaluationPairs)
    assert len(some) < len(every) == 36


def test_recipes_are_sound_and_survive_as_text(tmp_path: Path) -> None:
    for recipe in (recipes.voc, recipes.coco_1, recipes.coco_2, recipes.coco_3, recipes.coco_4, recipes.tiny):
        run = recipe()
        check(run)
        (tmp_path / "run.toml").write_text(dumps(run))
        assert load(type(run), tmp_path / "run.toml") == run
    assert recipes.voc().budget.epochs == 300
    assert override(recipes.tiny(), {"task.unseen": "circle,square"}).task.unseen == ("circle", "square")
