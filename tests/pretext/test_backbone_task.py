"""What tasks that train the backbone alone have in common, from the crops to what the next stage receives."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ssldet
from downstream.annotations.shapes import write_shapes
from pretext.backbone_task import BackboneTask, Crops
from pretext.nearest_neighbours import Category
from ssldet.chance import generator, lent
from ssldet.data.collate import collate
from ssldet.engine.fit import fit
from ssldet.engine.folder import RunFolder
from ssldet.errors import ConfigError
from ssldet.recipe import check, override
from ssldet.types import Sample, Targets
from ssldet.verbs.choosing import resolve

TASKS = ("swav", "moco_v2")
OPTIMIZERS = {"swav": "lars", "moco_v2": "sgd"}
SMALL: dict[str, object] = {"data.batch_size": 8, "data.workers": 0, "optim.warmup_steps": 0}
RESNET = SMALL | {"detector.backbone.name": "resnet18"}


def task_of(name: str) -> BackboneTask:
    task = resolve(f"{name}/tiny").task
    assert isinstance(task, BackboneTask)
    return task


def photo(height: int, width: int) -> Sample:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=nothing, key="1", original_size=(height, width))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images in two folders, and beside them `made` with the labels of one."""
    place = tmp_path_factory.mktemp("folders")
    for name, seed in (("made", 3), ("other", 4)):
        write_shapes(place / name, images=8, seed=seed)
        shutil.copytree(place / name / "images", place / "images" / name)
    return place / "images"


@pytest.fixture(scope="module")
def taught(folders: Path) -> Callable[[str], ssldet.Trained]:
    """`taught(task)`: a run of a few steps with a ResNet, made once."""
    made: dict[str, ssldet.Trained] = {}

    def run(name: str) -> ssldet.Trained:
        if name not in made:
            changes = RESNET | {"optim.ema": 0.5, "optim.clip": 0.0, "optim.optimizer": OPTIMIZERS[name]}
            out = folders.parent / name
            made[name] = ssldet.pretrain(
                folders, recipe=f"{name}/tiny", val=folders, steps=2, out=out, overrides=changes
            )
        return made[name]

    return run


def backbone_of(run: ssldet.Trained) -> dict[str, torch.Tensor]:
    start = "detector.backbone."
    state = load_file(run.path / "weights" / "model.safetensors")
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def test_lent_chance_leaves_every_global_stream_as_it_was() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random_sample()), float(torch.rand(()))  # noqa: NPY002

    def fail() -> None:
        with lent(generator("y")):
            drawn.append(draw())
            raise ZeroDivisionError

    drawn = []
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    for _ in range(2):
        with lent(generator("x")):
            drawn.append(draw())
    with pytest.raises(ZeroDivisionError):
        fail()
    assert drawn[0] == drawn[1] != drawn[2]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("name", "shapes"), [("swav", [(2, 3, 48, 48), (2, 3, 24, 24)]), ("moco_v2", [(2, 3, 48, 48)])]
)
def test_crops_come_by_size_and_differ(name: str, shapes: list[tuple[int, ...]]) -> None:
    made = task_of(name).views()(photo(70, 90), generator("one"))
    assert [tuple(crops.shape) for crops in made.problem.pixels] == shapes
    assert not torch.equal(made.problem.pixels[0][0], made.problem.pixels[0][1])
    assert torch.equal(made.image, made.problem.pixels[0][0])


def test_pixels_come_through_unchanged_where_nothing_changes_them() -> None:
    sample = photo(48, 48)
    views = override(resolve("moco_v2/tiny"), {"task.min_scale": 1.0, "task.colour_strength": 0.0}).task.views()
    # Of an image that is its own mirror image, no flip shows; greyscale is drawn for one crop in five.
    square = Sample(
        image=torch.cat([sample.image[..., :24], sample.image[..., :24].flip(-1)], dim=2),
        targets=sample.targets,
        key="1",
        original_size=(48, 48),
    )
    crops = torch.cat([views(square, generator("draw", number)).problem.pixels[0] for number in range(20)])
    assert sum(bool(torch.equal(crop, square.image)) for crop in crops) > 5


@pytest.mark.parametrize(("height", "width"), [(70, 90), (3000, 20), (17, 40)])
def test_the_middle_is_what_evaluation_sees(height: int, width: int) -> None:
    sample = photo(height, width)
    seen = task_of("swav").views(training=False)(sample, generator("one"))
    assert tuple(seen.image.shape) == (3, 48, 48)
    assert seen.original_size == (height, width)
    assert seen.problem == Category(folder="")


def test_a_backbone_that_can_t_learn_is_refused_with_both_reasons() -> None:
    run = override(resolve("swav/tiny"), {"detector.backbone.frozen_norm": True, "detector.backbone.frozen_stages": 1})
    with pytest.raises(ConfigError) as refused:
        check(run)
    assert "frozen_norm=false" in str(refused.value)
    assert "frozen_stages=0" in str(refused.value)


@pytest.mark.parametrize(
    "name", [f"{task}/{recipe}" for task in TASKS for recipe in ("r50", "tiny")] + ["swav/r50-small-batch"]
)
def test_recipes_are_whole(name: str) -> None:
    check(resolve(name))


@pytest.mark.parametrize("name", TASKS)
def test_a_run_measures_and_changes_nothing_but_the_backbone(name: str, taught: Any) -> None:
    run = taught(name)
    assert run.results["folders"] == 2
    assert 0 <= run.results["knn_top1"] <= 1
    newest = torch.load(run.path / "checkpoints" / "step-000002.ckpt", weights_only=True)
    first = torch.load(run.path / "checkpoints" / "step-000000.ckpt", weights_only=True)
    ours, before = newest["objective"], first["objective"]
    changed = {
        key.split(".")[1] for key in ours if key.startswith("detector.") and not torch.equal(ours[key], before[key])
    }
    assert changed == {"backbone"}
    norms = [key for key in ours if key.startswith("detector.") and key.endswith("running_mean")]
    assert norms
    # The averaged weights are handed over with the statistics of their last batch, not with those of the start.
    handed = load_file(run.path / "weights" / "model.safetensors")
    assert all(torch.equal(handed[key], ours[key]) and not torch.equal(ours[key], before[key]) for key in norms)


@pytest.mark.parametrize("name", TASKS)
def test_the_backbone_goes_on_to_stage_two(name: str, taught: Any, folders: Path) -> None:
    run = taught(name)
    second = ssldet.pretrain(
        folders,
        recipe="random_query_patch/tiny",
        backbone=str(run.path),
        steps=1,
        out=folders.parent / f"{name}-two",
        overrides={"data.batch_size": 4},
    )
    told = json.loads((second.path / "backbone.json").read_text())
    assert (told["kind"], told["coverage"]) == (told["kind"], 1.0)
    assert told["loaded"]["tensors"] == told["wanted"]["tensors"] == 100
    ours, theirs = backbone_of(run), backbone_of(second)
    assert {key for key in ours if not key.endswith("num_batches_tracked")} == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    lineage = json.loads((second.path / "lineage.json").read_text())["stages"]
    assert [stage["task"]["name"] for stage in lineage] == [name]


def test_the_crops_can_be_looked_at(folders: Path, tmp_path: Path) -> None:
    ssldet.preview(folders, task="swav", out=tmp_path / "crops.png", count=2)
    with Image.open(tmp_path / "crops.png") as picture:
        assert picture.width > 2 * 48


def test_finetuning_fixes_the_norms(taught: Any, folders: Path) -> None:
    made, run = folders.parent / "made", taught("moco_v2")
    changes = {"data.batch_size": 2, "optim.lr_backbone": 0.0}
    out = folders.parent / "fine"
    tuned = run.finetune(
        f"coco:{made}/instances.json:{made}/images", recipe="detection/tiny", steps=1, out=out, overrides=changes
    )
    rows = json.loads((tuned.path / "transfer.json").read_text())["rows"]
    assert [row["tensors"] for row in rows if (row["section"], row["outcome"]) == ("backbone", "loaded")] == [100]
    assert tuned.run.detector.backbone.frozen_norm  # type: ignore[attr-defined]
    ours, theirs = backbone_of(run), backbone_of(tuned)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("swav", "timm"),
        ("swav", "torchvision"),
        ("moco_v2", "timm"),
        ("moco_v2", "torchvision"),
        ("moco_v2", "safetensors"),
    ],
)
def test_exporters_take_it(name: str, to: str, taught: Any, tmp_path: Path) -> None:
    report = taught(name).export(to, tmp_path / "out")
    assert report.to_json()["equal"] == report.to_json()["tensors"] > 100


@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_is_the_quiet_one(name: str, folders: Path, tmp_path: Path) -> None:
    changes = SMALL | {"checkpoint.every_steps": 1, "checkpoint.keep": 9, "task.queue_length": 24}
    if name == "swav":
        changes |= {"task.queue_start": 2, "task.frozen_prototype_steps": 3}
    run = override(resolve(f"{name}/tiny"), changes | {"data.train": str(folders), "budget.steps": 6})
    quiet, broken = tmp_path / "quiet", tmp_path / "broken"
    fit(run, RunFolder.create(quiet, run))
    shutil.copytree(quiet, broken)
    for step in range(3, 7):
        for path in (broken / "checkpoints").glob(f"step-{step:06d}.*"):
            path.unlink()
    (broken / "weights" / "model.safetensors").unlink()
    fit(run, RunFolder(broken), resume=True)
    ours, theirs = (load_file(path / "weights" / "model.safetensors") for path in (quiet, broken))
    assert ours.keys() == theirs.keys()
    assert any("bank" in key for key in ours)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_crops_of_unequal_number_are_refused() -> None:
    made = task_of("swav").views()(photo(70, 90), generator("one"))
    assert [tuple(crops.shape) for crops in collate([made, made]).problem.pixels] == [
        (2, 2, 3, 48, 48),
        (2, 2, 3, 24, 24),
    ]
    fewer = Sample(
        image=made.image,
        targets=made.targets,
        key="2",
        original_size=(70, 90),
        problem=Crops(pixels=made.problem.pixels[:1]),
    )
    with pytest.raises(ValueError, match=r"Crops\.pixels of one batch"):
        collate([made, fewer])
