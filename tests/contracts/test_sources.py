"""Every registered data format under every law of sources, wrappers too, and laws that notice when they are broken."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from downstream.annotations.shapes import write_shapes
from downstream.one_shot import OneShot
from ssldet import testing
from ssldet.boxes import to_absolute
from ssldet.data.images import ImageRules
from ssldet.data.joining import ConcatSource
from ssldet.data.sources import PartSource, Unlabelled, open_source
from ssldet.registry import names
from ssldet.source import Source
from ssldet.testing import sources as laws
from ssldet.types import Sample, Targets
from tests.tables import as_dataset

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set of five images in every format; one image has no object."""
    place = tmp_path_factory.mktemp("sets")
    write_shapes(place / "shapes", images=5, size=48, objects=(0, 3), stuff=True)
    Image.new("RGB", (70, 40)).save(place / "shapes" / "images" / "wide.png")
    coco = opened(f"coco:{place / 'shapes' / 'instances.json'}")
    write_voc(place / "voc", coco)
    write_yolo(place / "yolo", coco)
    write_folders(place / "folders", coco)
    write_tar(place / "tar", coco)
    return place


def opened(*specs: str, masks: bool = False) -> Source:
    return open_source(specs, ImageRules(min_side=17, max_pixels=10**6), masks=masks)


def objects_of(source: Source) -> Iterator[tuple[Path, Sample]]:
    for index in range(len(source)):
        path = source.path_of(index)
        assert path is not None
        yield path, source[index]


def write_voc(place: Path, source: Source) -> None:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (place / name).mkdir(parents=True)
    for path, sample in objects_of(source):
        (place / "JPEGImages" / path.name).write_bytes(path.read_bytes())
        corners = to_absolute(sample.targets.boxes, sample.original_size).round().int().tolist()
        rows = [
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for (left, top, right, bottom), label in zip(corners, sample.targets.labels.tolist(), strict=True)
        ]
        (place / f"Annotations/{path.stem}.xml").write_text(f"<annotation>{''.join(rows)}</annotation>")
    stems = sorted(path.stem for path in (place / "JPEGImages").iterdir())
    (place / "ImageSets/Main/trainval.txt").write_text("\n".join(stems))


def write_yolo(place: Path, source: Source) -> None:
    for name in ("images", "labels"):
        (place / name).mkdir(parents=True)
    (place / "data.yaml").write_text(f"train: images\nnames: [{', '.join(CLASSES)}]\n")
    for path, sample in objects_of(source):
        (place / "images" / path.name).write_bytes(path.read_bytes())
        rows = [
            f"{label} {x - w / 2} {y - h / 2} {x + w / 2} {y - h / 2} {x + w / 2} {y + h / 2} {x - w / 2} {y + h / 2}\n"
            for (x, y, w, h), label in zip(
                sample.targets.boxes.double().tolist(), sample.targets.labels.tolist(), strict=True
            )
        ]
        (place / "labels" / f"{path.stem}.txt").write_text("".join(rows))


def write_folders(place: Path, source: Source) -> None:
    for path, sample in objects_of(source):
        name = CLASSES[int(sample.targets.labels[0])] if len(sample.targets) else "none"
        (place / name / "deeper").mkdir(parents=True, exist_ok=True)
        (place / name / "deeper" / path.name).write_bytes(path.read_bytes())


def write_tar(place: Path, source: Source) -> None:
    place.mkdir()
    for number, (path, _) in enumerate(objects_of(source)):
        with tarfile.open(place / f"{number % 2}.tar", "a") as archive:
            archive.add(path, path.name)


def hf(place: Path, *columns: str) -> str:
    """Save the set as a dataset of Hugging Face, if its library is installed."""
    saved = place / "-".join(("hf", *columns))
    if not saved.exists():
        as_dataset(place / "shapes" / "instances.json").select_columns(list(columns)).save_to_disk(str(saved))
    return f"hf:{saved}"


def one_shot(place: Path, *, training: bool) -> Source:
    return OneShot(unseen=("square",), patch_size=16, absent_share=0.3).prepare(
        opened(f"coco:{place / 'shapes' / 'instances.json'}"), training=training
    )


def panoptic(place: Path) -> str:
    return f"panoptic:{place / 'shapes' / 'panoptic.json'}"


def coco(place: Path) -> str:
    return f"coco:{place / 'shapes' / 'instances.json'}"


FORMATS: dict[str, Callable[[Path], Source]] = {
    "coco": lambda place: opened(coco(place)),
    "voc": lambda place: opened(f"voc:{place / 'voc'}"),
    "yolo": lambda place: opened(f"yolo:{place / 'yolo'}"),
    "panoptic": lambda place: opened(panoptic(place)),
    "folders": lambda place: opened(f"folders:{place / 'folders'}"),
    "tar": lambda place: opened(f"tar:{place / 'tar'}:window=1"),
    "hf": lambda place: opened(hf(place, "image", "objects")),
}
OTHERS: dict[str, Callable[[Path], Source]] = {
    "images": lambda place: opened(str(place / "shapes" / "images")),
    "coco with masks": lambda place: opened(coco(place), masks=True),
    "yolo with masks": lambda place: opened(f"yolo:{place / 'yolo'}", masks=True),
    "panoptic with masks": lambda place: opened(panoptic(place), masks=True),
    "two sets": lambda place: opened(coco(place), f"yolo:{place / 'yolo'}"),
    "labelled and unlabelled": lambda place: opened(coco(place), str(place / "shapes" / "images")),
    "coco in archives": lambda place: opened(f"{coco(place)}:tar:{place / 'tar'}:window=1"),
    "part of archives": lambda place: PartSource(opened(f"tar:{place / 'tar'}:window=1"), [4, 0, 3]),
    "hf without labels": lambda place: opened(hf(place, "image")),
    "part of hf": lambda place: PartSource(opened(hf(place, "image")), [4, 0, 3]),
    "part": lambda place: PartSource(opened(panoptic(place)), [4, 0, 3]),
    "part of two sets": lambda place: PartSource(opened(coco(place), f"voc:{place / 'voc'}"), [9, 0, 5]),
    "without labels": lambda place: Unlabelled(opened(coco(place))),
    "one-shot training": lambda place: one_shot(place, training=True),
    "one-shot evaluation": lambda place: one_shot(place, training=False),
    "without labels and drawn": lambda place: Unlabelled(one_shot(place, training=True)),
}
SETS = FORMATS | OTHERS


def test_every_registered_format_is_here() -> None:
    assert sorted(FORMATS) == sorted(names("ssldet.sources"))


@pytest.mark.parametrize("law", testing.SOURCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SETS)
def test_a_source_keeps_the_law(name: str, law: testing.SourceLaw, folder: Path) -> None:
    law(SETS[name](folder), SETS[name](folder))


def test_all_laws_are_checked_at_once(folder: Path) -> None:
    source = opened(str(folder / "shapes" / "images"))
    testing.check_source(source)
    with pytest.raises(AssertionError, match="6 images, and 5 when opened again"):
        testing.check_source(source, opened(coco(folder)))


class Colours(Source):
    """Four images of one colour each, two of them with a box; keeps every law."""

    classes: tuple[str, ...] = ("cat", "dog")
    fingerprint = "colours"
    skipped = ()
    category_ids: tuple[int, ...] = (18, 3)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        boxes = torch.full((index % 2, 4), 0.5)
        return Sample(
            image=torch.full((3, 20 + index, 30), 40 * index, dtype=torch.uint8),
            targets=Targets(boxes=boxes, labels=torch.ones(len(boxes), dtype=torch.int64)),
            key=f"image {index}",
            original_size=(20 + index, 30),
        )


class FromTheEnd(Colours):
    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index % len(self))


class OneKey(Colours):
    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), key="image")


class NewFingerprint(Colours):
    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return str(float(torch.rand(())))


class Noisy(Colours):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, image=torch.randint(0, 256, sample.image.shape, dtype=torch.uint8))


class NoisyDraw(Colours):
    def draw(self, index: int, generator: torch.Generator) -> Sample:
        sample = self[index]
        return replace(sample, image=torch.randint(0, 256, sample.image.shape, dtype=torch.uint8))


class ShowsOneTwice(Colours):
    def order(self, seed: int, epoch: int) -> torch.Tensor:
        return torch.tensor([0, 1, 1, 3])


class OrderOfItsOwnChance(Colours):
    def order(self, seed: int, epoch: int) -> torch.Tensor:
        return torch.randperm(4)


class PixelsForBoxes(Colours):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, targets=replace(sample.targets, boxes=sample.targets.boxes * 30))


class UnknownLabel(Colours):
    classes = ("cat",)
    category_ids = ()


class TooFewIds(Colours):
    category_ids = (18,)


class ForgetsIds(Colours):
    def with_classes(self, classes: object) -> Source:
        other = Colours()
        other.classes = tuple(classes)  # type: ignore[arg-type]
        return other


class KnowsOtherTargets(Colours):
    def targets_of(self, index: int) -> Targets:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Targets(boxes=torch.full((1, 4), 0.5), labels=torch.ones(1, dtype=torch.int64))


class AnotherSize(Colours):
    def size_of(self, index: int) -> tuple[int, int]:
        return (30, 20)


class NoSuchFile(Colours):
    def path_of(self, index: int) -> Path:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Path(f"/no/such/{index}.png")


class StaysAtHome(Colours):
    def __reduce__(self) -> tuple[type, tuple[()]]:
        return FromAnotherPlace, ()


class FromAnotherPlace(Colours):
    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(3 - index)


@pytest.mark.parametrize(
    ("broken", "law", "said"),
    [
        (FromTheEnd, laws.images_are_numbered_from_zero, "raise IndexError"),
        (OneKey, laws.keys_are_unique, "have one key"),
        (NewFingerprint, laws.the_fingerprint_is_stable, "fingerprint of one set"),
        (Noisy, laws.items_are_functions_of_their_number, "differs when it is read twice"),
        (NoisyDraw, laws.items_are_functions_of_their_number, "not the generator's"),
        (ShowsOneTwice, laws.the_order_is_a_permutation, "does not show each of 4 images once"),
        (OrderOfItsOwnChance, laws.the_order_is_a_permutation, "more than seed and epoch"),
        (PixelsForBoxes, laws.targets_lie_in_the_image, "outside or is empty"),
        (UnknownLabel, laws.targets_lie_in_the_image, r"labels \[1\] of 1 classes"),
        (TooFewIds, laws.what_is_said_of_classes_agrees, "1 category_ids for 2 classes"),
        (ForgetsIds, laws.what_is_said_of_classes_agrees, "category_ids in the old order"),
        (KnowsOtherTargets, laws.what_is_known_without_reading_is_true, "not those of the image"),
        (AnotherSize, laws.what_is_known_without_reading_is_true, r"size_of\(0\) is \(30, 20\), not \(20, 30\)"),
        (NoSuchFile, laws.what_is_known_without_reading_is_true, "which is no file"),
        (StaysAtHome, laws.it_travels_into_workers, "reads another image"),
    ],
)
def test_a_broken_source_is_noticed(broken: type[Colours], law: testing.SourceLaw, said: str) -> None:
    testing.check_source(Colours())
    with pytest.raises(AssertionError, match=said):
        law(broken(), broken())


def test_a_wrapper_that_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartSource, "category_ids", ())
    with pytest.raises(AssertionError, match="a part has other category_ids"):
        laws.wrappers_keep_what_it_can(Colours(), Colours())


def test_results_with_other_ids_are_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(coco(folder))
    laws.results_have_original_ids(source, source)
    row = {"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1]}
    monkeypatch.setattr(type(source), "to_results", lambda self, found, batch: [row] * len(found[0]))
    with pytest.raises(AssertionError, match="ids that ground_truth does not know"):
        laws.results_have_original_ids(source, source)


def test_parts_of_joined_sources_find_their_images(folder: Path) -> None:
    first, second = opened(coco(folder)), opened(f"voc:{folder / 'voc'}")
    part = PartSource(ConcatSource([first, second]), [7, 2])
    assert part.path_of(0) == second.path_of(2)
    assert part.path_of(1) == first.path_of(2)
    assert (part.category_ids, second.category_ids) == (first.category_ids, (1, 2, 3))
