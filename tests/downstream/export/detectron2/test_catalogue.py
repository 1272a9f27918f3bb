"""What detectron2's catalogue holds of images in archives is what it holds of the same images in a folder."""

import tarfile
from pathlib import Path

import pytest
import torch

from downstream.annotations.shapes import write_shapes
from ssldet.errors import DataError
from ssldet.registry import find

pytest.importorskip("detectron2", reason="detectron2 is not installed")


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    """One set with its images in a folder, and in two archives."""
    annotations = write_shapes(tmp_path / "set", images=5, size=48)
    (tmp_path / "shards").mkdir()
    for number, images in enumerate((range(3), range(3, 5))):
        files = sorted((annotations.parent / "images").iterdir())
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as archive:
            for place in images:
                archive.add(files[place], files[place].name)
    return f"coco:{annotations}", f"coco:{annotations}:tar:{tmp_path}/shards"


def test_archives_are_read_by_detectron2s_loaders(sets: tuple[str, str]) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from downstream.export.detectron2.catalogue import register
    from downstream.export.detectron2.mapper import Mapper

    folder, packed = map(register, sets)
    mapper = Mapper(find("ssldet.recipes", "detection/tiny")().task, training=False)
    rows = list(zip(DatasetCatalog.get(folder), DatasetCatalog.get(packed), strict=True))
    assert len(rows) == 5
    for ours, theirs in rows:
        names = ("image_id", "height", "width", "annotations")
        assert [ours[name] for name in names] == [theirs[name] for name in names]
        assert theirs["file_name"].endswith(
            (f"/0.tar/{Path(ours['file_name']).name}", f"/1.tar/{Path(ours['file_name']).name}")
        )
        assert torch.equal(mapper(ours)["image"], mapper(theirs)["image"])
    assert MetadataCatalog.get(packed).json_file == MetadataCatalog.get(folder).json_file


def test_formats_that_it_can_not_measure_are_refused() -> None:
    from downstream.export.detectron2.catalogue import register

    with pytest.raises(DataError, match=r"hf:saved: none of coco:…, voc:…, panoptic:…"):
        register("hf:saved")
