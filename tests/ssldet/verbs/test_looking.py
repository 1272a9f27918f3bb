"""What labelled views look like before training, and reports of runs that measured nothing while they were trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssldet
from ssldet.engine.folder import RunFolder
from ssldet.errors import ConfigError, DataError

SMALL = {"data.workers": 0, "data.batch_size": 2}


def labelled(folder: Path, name: str = "square") -> str:
    """Write four images with a square each."""
    folder.mkdir()
    images, annotations = [], []
    for number in range(4):
        pixels = np.full((48, 64, 3), 90, np.uint8)
        pixels[10:30, 20:40] = (240, 30, 10 * number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
        box = {"bbox": [20, 10, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
        annotations.append({"id": number + 1, "image_id": number, **box})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": name}]}
    (folder / "labels.json").write_text(json.dumps(document))
    return f"coco:{folder}/labels.json:{folder}"


def test_labelled_views_are_drawn_with_their_boxes(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data")
    shown = ssldet.preview(data, recipe="detection/tiny", out=tmp_path / "preview.png", count=2, overrides=SMALL)
    assert shown.probe == {}
    picture = np.asarray(Image.open(tmp_path / "preview.png").convert("RGB")).astype(int)
    first_colour = np.abs(picture - np.array((230, 159, 0))).sum(-1) < 30
    assert first_colour.sum() > 200  # frames and captions of the first class
    with pytest.raises(ConfigError, match="carries no labels"):
        ssldet.preview(str(tmp_path / "data"), recipe="detection/tiny", out=tmp_path / "none.png", overrides=SMALL)
    assert not (tmp_path / "none.png").exists()
    Image.new("RGB", (8, 6)).save(tmp_path / "mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    with pytest.raises(ConfigError, match=r"mine.png: exists, and ssldet did not draw it"):
        ssldet.preview(data, recipe="detection/tiny", out=tmp_path / "mine.png", overrides=SMALL)
    assert (tmp_path / "mine.png").read_bytes() == before
    ssldet.preview(data, recipe="detection/tiny", out=tmp_path / "preview.png", count=2, overrides=SMALL)


def test_a_run_that_measured_nothing_is_measured_for_its_report(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data")
    run = ssldet.finetune("scratch", data, recipe="detection/tiny", steps=1, out=tmp_path / "run", overrides=SMALL)
    assert not RunFolder(run.path).status().get("results")
    with pytest.raises(DataError, match="name data with the same ones"):
        ssldet.report(run.path, data=labelled(tmp_path / "other", "circle"))
    page = run.report(data=data)
    status = RunFolder(run.path).status()
    assert "AP50" in status["results"]
    assert status["measured_on"] == [data]
    assert (run.path / "findings.json").exists()
    assert "AP50" in page.read_text()
    with pytest.raises(ConfigError, match=r"was measured on .* already"):
        ssldet.report(run.path, data=data)
