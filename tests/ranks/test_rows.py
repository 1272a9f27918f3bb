"""Ranks send each other rows instead of masks, and the figures are those of one process."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from downstream.annotations.shapes import write_shapes

METRICS = ["box", "mask", "panoptic", "all"]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any], list[Any]]:
    """A panoptic set, a batch for each image, and answers that are partly wrong."""
    from ssldet.data.collate import collate
    from ssldet.data.images import ImageRules
    from ssldet.data.problems import without_pixels
    from ssldet.data.sources import open_source
    from ssldet.types import Detections, Segmentation

    folder = tmp_path_factory.mktemp("stuff")
    write_shapes(folder, images=5, stuff=True, seed=4)
    source: Any = open_source([f"panoptic:{folder / 'panoptic.json'}"], rules=ImageRules())
    batches, answers = [], []
    for index in range(len(source)):
        truth, generator = source.truth(source.all_keys[index]), torch.Generator().manual_seed(index)
        shifted = truth.segments.roll(index + 2, dims=1)
        boxes = torch.rand(len(truth.labels), 4, generator=generator) * 20
        masks = torch.stack([shifted == number for number in range(1, len(truth.labels) + 1)])
        batches.append(without_pixels(collate([source[index]])))
        answers.append([
            Detections(
                boxes=boxes + torch.tensor([0.0, 0, 24, 24]), scores=torch.rand(len(boxes), generator=generator),
                labels=truth.labels, masks=masks, segmentation=Segmentation(segments=shifted, labels=truth.labels),
            )
        ])  # fmt: skip
    return source, batches, answers


def evaluator_of(metric: str, source: Any) -> Any:
    from downstream.metrics.average_precision import BoxAP, MaskAP
    from downstream.metrics.panoptic_quality import PanopticQuality
    from downstream.metrics.segmentation import SegmentationFigures, Things

    kinds: dict[str, Any] = {"panoptic": PanopticQuality, "all": SegmentationFigures}
    if metric in kinds:
        return kinds[metric](source)
    return {"box": BoxAP, "mask": MaskAP}[metric](Things(source))


@pytest.mark.parametrize("metric", METRICS)
def test_rows_of_several_ranks_give_the_figures_of_one(metric: str, answered: tuple[Any, list[Any], list[Any]]) -> None:
    from ssldet.task import SharesRows

    source, batches, answers = answered
    if metric in {"box", "mask"}:  # they know of things alone
        things = torch.tensor(source.is_thing)
        answers = [[one.only(things[one.labels])] for (one,) in answers]
    whole = evaluator_of(metric, source)
    for batch, found in zip(batches, answers, strict=True):
        whole.update(found, batch)
    first, ranks = evaluator_of(metric, source), [evaluator_of(metric, source) for _ in range(2)]
    assert isinstance(first, SharesRows)
    for number, (batch, found) in enumerate(zip(batches, answers, strict=True)):
        rank = ranks[number % 2]
        rank.update(found, batch)
        sent = pickle.dumps(rank.take_rows())
        assert len(sent) < 10_000, "a mask of each object would take more"
        first.add_rows(pickle.loads(sent))  # our own bytes
    assert first.results() == whole.results()
    assert pickle.dumps(ranks[0].take_rows()) == pickle.dumps(evaluator_of(metric, source).take_rows())


def numbers_of(figures: dict[str, Any], path: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        inner = isinstance(value, dict)
        found |= numbers_of(value, f"{path}{name}.") if inner else {f"{path}{name}": value}
    return found


def test_two_ranks_measure_masks_as_one_does(tmp_path: Path, two_ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from downstream.metrics import average_precision, coco_engines
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder
    from ssldet.recipe import override
    from ssldet.registry import find

    write_shapes(tmp_path / "stuff", images=4, stuff=True, seed=4)
    data = (f"panoptic:{tmp_path / 'stuff' / 'panoptic.json'}",)
    run = override(
        find("ssldet.recipes", "panoptic/tiny")(),
        {
            "data.train": data, "data.val": data, "data.batch_size": 2, "data.workers": 0, "budget.steps": 1,
            "optim.lr": 0.0, "optim.lr_backbone": 0.0, "optim.weight_decay": 0.0, "device": "cpu", "health": 0,
            "optim.warmup_steps": 0, "detector.num_classes": 5,
        },
    )  # fmt: skip
    torch.set_num_threads(1)
    # The threads of the faster engine don't survive a fork.
    monkeypatch.setattr(average_precision, "fastest", lambda: coco_engines.by_pycocotools)
    one = fit(run, RunFolder(tmp_path / "one"))
    assert [rank.wait() for rank in two_ranks(lambda: fit(run, RunFolder(tmp_path / "two")))] == [0, 0]
    two = RunFolder(tmp_path / "two").status()["results"]
    assert {"PQ", "box", "segm"} <= one.keys()
    assert numbers_of(two) == pytest.approx(numbers_of(one), abs=1e-9)
