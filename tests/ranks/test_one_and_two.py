"""One process with a whole batch, and two with half of it each: the same weights, whatever is drawn and measured."""

import functools
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

STEPS = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes, with boxes of uneven numbers, so that ranks differ in canvas and in what there is."""
    folder = tmp_path_factory.mktemp("photos")
    images, annotations = [], []
    for number in range(8):
        generator = torch.Generator().manual_seed(number)
        height, width = 40 + 8 * (number % 3), 56 - 8 * (number % 4)
        coarse = torch.rand(1, 3, 5, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        Image.fromarray((255 * smooth).byte().permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for place in range(number % 4):
            box = [2 + 6 * place, 3, 12, 10 + number]
            annotations.append({
                "id": len(annotations), "image_id": number, "category_id": 1 + place % 2, "bbox": box, "iscrowd": 0,
                "area": box[2] * box[3],
            })  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


SMALL = {
    "data.batch_size": 4, "data.workers": 0, "budget.steps": STEPS, "health": 0, "device": "cpu",
    "optim.optimizer": "sgd", "optim.lr": 0.02, "optim.schedule": "constant", "optim.warmup_steps": 0,
    "optim.weight_decay": 0.0, "log_every": 1,
    "detector.feedforward": 32, "detector.decoder_layers": 1, "detector.dropout": 0.0,
}  # fmt: skip

CASES = {
    "queries masked and shuffled": ("random_query_patch/tiny", {"task.shuffle": True, "task.mask_ratio": 0.4}),
    "patches masked, two parts": (
        "random_query_patch/deformable-tiny",
        {"task.masking": "patch", "task.mask_ratio": 0.4, "optim.accumulate": 2, "detector.extra_levels": 0},
    ),
    "labels": ("detection/tiny", {}),
}


def run_of(recipe: str, changes: dict[str, Any], photos: Path) -> Any:
    from ssldet.recipe import override
    from ssldet.registry import find

    data = f"coco:{photos / 'instances.json'}" if recipe.startswith("detection") else str(photos)
    run = override(find("ssldet.recipes", recipe)(), {**SMALL, "data.train": (data,), **changes})
    return override(run, {"detector.num_classes": 2}) if run.task.needs.labels else run


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "weights" / "model.safetensors")


def train(folder: Path, run: Any) -> None:
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder

    torch.set_num_threads(1)
    fit(run, RunFolder.create(folder, run))


def _counted(owner: Any, name: str) -> list[None]:
    """Have calls of a function noted in a list; in a forked process."""
    calls: list[None] = []
    function = getattr(owner, name)

    @functools.wraps(function)
    def note(*given: Any, **named: Any) -> Any:
        calls.append(None)
        return function(*given, **named)

    setattr(owner, name, note)
    return calls


def train_and_look(folder: Path, run: Any) -> None:
    """Train as one of two ranks; only the first step may look for parameters without a loss, and sums are counted."""
    from torch.nn.parallel import DistributedDataParallel

    from ssldet.engine import reporter

    built: list[bool] = []
    wrap = DistributedDataParallel.__init__

    @functools.wraps(wrap)
    def note(self: Any, *given: Any, **named: Any) -> None:
        built.append(named["find_unused_parameters"])
        wrap(self, *given, **named)

    DistributedDataParallel.__init__ = note  # type: ignore[method-assign]  # in a forked process
    sums = [_counted(torch.distributed, "all_reduce"), _counted(reporter, "reduce_mean")]
    train(folder, run)
    assert built == [True, False]
    # Gradients are added up elsewhere, and what is written of a run is no part of a step.
    in_steps = len(sums[0]) - len(sums[1])
    assert in_steps == run.optim.accumulate * STEPS + 1, "one for the boxes of each part, one for the first canvas"
    gc.collect()
    alive = [thing for thing in gc.get_objects() if type(thing) is DistributedDataParallel]
    assert len(alive) <= 1, "the first wrapper still averages gradients"


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_end_in_the_weights_of_one(
    case: str, photos: Path, tmp_path: Path, two_ranks: Callable[..., Any]
) -> None:
    recipe, changes = CASES[case]
    run = run_of(recipe, changes, photos)
    train(tmp_path / "one", run)  # first, so that the other processes find everything imported
    assert [rank.wait() for rank in two_ranks(lambda: train_and_look(tmp_path / "two", run))] == [0, 0]
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_in_64_bits_two_ranks_are_one_process(
    photos: Path, tmp_path: Path, two_ranks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What AdamW makes of the rounding of 32-bit sums is all that differs otherwise: thirteen digits agree here."""
    changes = {"optim.optimizer": "adamw", "optim.lr": 1e-4, "optim.weight_decay": 1e-4, "log_every": STEPS}
    run = run_of("random_query_patch/tiny", changes, photos)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    try:
        train(tmp_path / "one", run)
        assert [rank.wait() for rank in two_ranks(lambda: train(tmp_path / "two", run))] == [0, 0]
    finally:
        torch.set_default_dtype(torch.float32)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    learned = [name for name in one if one[name].dtype == torch.float64]
    assert learned
    assert max(float((one[name] - two[name]).abs().max()) for name in learned) < 1e-12


def test_what_a_step_draws_for_an_image_does_not_depend_on_the_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssldet import chance

    cpu = torch.device("cpu")

    def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        chance.begin_step(7, 3, 0)
        dropped = float(torch.rand(()))
        chance.begin_step(7, 3, 0)
        first, order = chance.uniform(rows, 5, device=cpu), chance.permutation(9, cpu)
        return first, order, chance.uniform(rows, 2, device=cpu), dropped

    rows = 4
    whole = drawn()
    rows, parts = 2, []
    monkeypatch.setattr("ssldet.ranks.connected", lambda: True)
    monkeypatch.setattr("ssldet.ranks.world", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr("ssldet.ranks.rank", lambda number=number: number)
        parts.append(drawn())
    for part in (0, 2):
        assert torch.equal(torch.cat([parts[0][part], parts[1][part]]), whole[part])
    assert torch.equal(parts[0][1], whole[1])
    assert torch.equal(parts[1][1], whole[1])
    # Dropout is each rank's own, and neither that of another rank nor of the same numbers as the draws above.
    assert len({parts[0][3], parts[1][3], whole[3]}) == 3


def test_a_batch_lies_on_the_canvas_of_all_ranks() -> None:
    from ssldet.data.canvases import enlarged, sides
    from ssldet.data.collate import collate, take
    from ssldet.types import Sample, Targets

    def sample(height: int, width: int) -> Sample:
        targets = Targets(
            boxes=torch.rand(1, 4), labels=torch.zeros(1, dtype=torch.int64),
            masks=torch.ones(1, height, width, dtype=torch.bool),
        )  # fmt: skip
        image = torch.full((3, height, width), 9, dtype=torch.uint8)
        return Sample(image=image, targets=targets, key=f"{height}", original_size=(height, width))

    whole = collate([sample(8, 12), sample(10, 6)])
    assert enlarged(whole, sides(whole)) is whole
    for row in (0, 1):
        own = enlarged(take(whole, [row]), [10, 12])
        assert torch.equal(own.images, whole.images[row : row + 1])
        assert torch.equal(own.padding, whole.padding[row : row + 1])
        assert torch.equal(own.sizes, whole.sizes[row : row + 1])
        masks, expected = own.targets[0].masks, whole.targets[row].masks
        assert masks is not None
        assert expected is not None
        assert torch.equal(masks, expected)
