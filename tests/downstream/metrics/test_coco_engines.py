"""Both engines give the curves of pycocotools, called as its own users call it, in every case of COCO's metric."""

import contextlib
import io
import sys
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from downstream.metrics import average_precision, coco_engines
from downstream.metrics.average_precision import box_ap, mask_ap
from downstream.metrics.coco_engines import (
    Curves,
    Engine,
    Kind,
    Numbers,
    Results,
    by_hotcoco,
    by_pycocotools,
    columns_of,
    fastest,
)

Document = dict[str, Any]
HEIGHT, WIDTH = 60, 80
LIMITS = ([1, 10, 100], [1], [1, 5], [1, 10, 37], [1, 10, 300])


def random_set(seed: int) -> tuple[Document, list[Document]]:
    """Crowds, difficult objects, ties, no area, all size classes, empty classes and images, too many objects."""
    chance = np.random.default_rng(seed)
    categories = [90, 3, 17, 5][: chance.integers(1, 5)]
    truth: Document = {
        "images": [
            {"id": int(key), "height": HEIGHT, "width": WIDTH}
            for key in chance.permutation(30)[: chance.integers(1, 9)]
        ],
        "categories": [{"id": key, "name": f"c{key}"} for key in categories],
        "annotations": [],
    }
    found: list[Document] = []
    most = 150 if seed % 4 == 0 else 9
    for image in truth["images"]:
        for _ in range(chance.integers(0, most)):
            box, row = random_box(chance), {"image_id": image["id"], "category_id": int(chance.choice(categories))}
            kind = {"iscrowd": int(chance.random() < 0.15), "difficult": int(chance.random() < 0.1)}
            area = float(chance.choice([box[2] * box[3] * chance.uniform(0.5, 60), 1024.0, 9216.0, 0.0]))
            mask = mask_of(box, chance)
            truth["annotations"].append({**row, **kind, "bbox": box, "area": area, "segmentation": encoded(mask)})
            for _ in range(chance.integers(0, 4)):
                mask[: chance.integers(0, HEIGHT)] = 0
                noisy = (np.array(box) + chance.normal(0, 0.1, 4) * min(box[2:]) * chance.integers(0, 2)).clip(0)
                score = round(chance.normal(), int(chance.choice([1, 9])))
                category = int(chance.choice([row["category_id"], categories[0]]))
                found.append({**row, "category_id": category, "bbox": noisy.tolist(), "score": score})
                found[-1]["segmentation"] = encoded(mask)
    return truth, [found[number] for number in chance.permutation(len(found))]


def random_box(chance: np.random.Generator) -> list[float]:
    box = chance.uniform(0, (40, 30, 39, 29))
    return (box.round() if chance.random() < 0.3 else box).tolist()  # type: ignore[no-any-return]


def mask_of(box: list[float], chance: np.random.Generator) -> np.ndarray:
    x, y, w, h = (int(side) for side in box)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = chance.random((h, w)) < 0.9
    return mask


def encoded(mask: np.ndarray) -> Document:
    run_lengths: Document = coco_mask.encode(mask)
    return run_lengths


class Difficult(COCOeval):  # type: ignore[misc]  # no types
    """pycocotools that ignores difficult objects as it ignores those outside the size class."""

    def _prepare(self) -> None:
        super()._prepare()
        for row in self.cocoGt.anns.values():
            row["ignore"] = int(row["ignore"] or row.get("difficult", 0))


def reference(truth: Document, found: list[Document], kind: Kind, limits: list[int]) -> Curves:
    """Call pycocotools as its users do; its `loadRes` wants at least one row."""
    ours, theirs = COCO(), COCO()
    rows = [{**row, "id": number} for number, row in enumerate(truth["annotations"], start=1)]
    ours.dataset = truth | {"annotations": rows}
    with contextlib.redirect_stdout(io.StringIO()):
        ours.createIndex()
        if found:
            theirs = ours.loadRes([dict(row) for row in found])
        evaluation = Difficult(ours, theirs, kind)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def curves_of(engine: Engine, truth: Document, found: list[Document], kind: Kind, limits: list[int]) -> Curves:
    numbers = Numbers.of(truth)
    true, answers = columns_of(truth["annotations"], numbers, kind), columns_of(found, numbers, kind)
    return engine(numbers, true, answers, kind, limits)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(20))
def test_the_curves_are_those_of_pycocotools(seed: int, kind: Kind) -> None:
    truth, found = random_set(seed)
    limits = LIMITS[seed % len(LIMITS)]
    wanted = reference(truth, found, kind, limits)
    for engine in (by_hotcoco, by_pycocotools):
        for ours, theirs in zip(curves_of(engine, truth, found, kind, limits), wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_mask_without_box_has_the_size_of_the_mask() -> None:
    truth, found = random_set(2)
    bare = [{name: value for name, value in row.items() if name != "bbox"} for row in found]
    sized = [{**row, "bbox": coco_mask.toBbox(row["segmentation"]).tolist()} for row in bare]
    columns = columns_of(bare, Numbers.of(truth), "segm")
    np.testing.assert_array_equal(columns.areas, [coco_mask.area(row["segmentation"]) for row in bare])
    np.testing.assert_array_equal(columns.boxes, [row["bbox"] for row in sized])
    wanted = reference(truth, bare, "segm", [1, 10, 100])
    for ours, theirs in zip(curves_of(by_hotcoco, truth, bare, "segm", [1, 10, 100]), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def test_a_table_of_results_is_what_its_rows_are() -> None:
    truth, found = random_set(8)
    ids = [row["id"] for row in truth["images"]]
    classes = [row["id"] for row in truth["categories"]]
    images = np.array([ids.index(row["image_id"]) for row in found])
    labels = [classes.index(row["category_id"]) for row in found]
    table = np.array([[*row["bbox"], row["score"], label] for row, label in zip(found, labels, strict=True)])
    results = Results(ids, classes, images, table)
    plain = [{name: value for name, value in row.items() if name != "segmentation"} for row in found]
    assert list(results) == plain
    assert results[-2:] == plain[-2:]
    assert box_ap(truth, results) == box_ap(truth, plain)


def test_pycocotools_takes_over_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    truth, found = random_set(3)
    masks = [{name: value for name, value in row.items() if name != "bbox"} for row in found]
    fast = box_ap(truth, found), mask_ap(truth, masks)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "hotcoco", None)
        fastest.cache_clear()
        assert fastest() is coco_engines.by_pycocotools
        slow = box_ap(truth, found), mask_ap(truth, masks)
        assert box_ap(truth, found) == slow[0]
    fastest.cache_clear()
    for one, other in zip(fast, slow, strict=True):
        assert one.pop("per_class") == pytest.approx(other.pop("per_class"), abs=1e-9)
        assert one == pytest.approx(other, abs=1e-9)
    said = [record.message for record in caplog.records if record.name == coco_engines.__name__]
    assert said == ["hotcoco is not installed: AP is computed by pycocotools, the same but slowly; pip install hotcoco"]
    assert average_precision.fastest() is by_hotcoco
