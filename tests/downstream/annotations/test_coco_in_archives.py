"""`coco:ANN.json:tar:SHARDS` against the same annotations with a folder of images."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from downstream.annotations.shapes import write_shapes
from ssldet.data.images import ImageRules
from ssldet.data.packing import pack
from ssldet.data.problems import same
from ssldet.data.sources import absolute_spec, open_source
from ssldet.errors import AnnotationError
from ssldet.verbs import check_data, convert_data

RULES = ImageRules()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "set", images=6, size=48, objects=(1, 3))
    images = tmp_path / "set" / "images"
    # A name as exporters write it, which WebDataset would cut at its first dot.
    document = json.loads((tmp_path / "set" / "instances.json").read_text())
    first = document["images"][0]["file_name"]
    document["images"][0]["file_name"] = "a_png.rf.8a7d.png"
    (images / first).rename(images / "a_png.rf.8a7d.png")
    (tmp_path / "set" / "instances.json").write_text(json.dumps(document))
    pack([images], tmp_path / "packed", RULES)
    return tmp_path


def test_archives_give_what_the_folder_gives(made: Path) -> None:
    annotations = f"coco:{made}/set/instances.json"
    folder = open_source([f"{annotations}:{made}/set/images"], RULES, masks=True)
    packed = open_source([f"{annotations}:tar:{made}/packed"], RULES, masks=True)
    assert len(folder) == len(packed) == 6
    assert packed.fingerprint == folder.fingerprint
    for index in range(6):
        assert same(packed[index], folder[index])
        assert packed.path_of(index) is None
    assert packed.name_of(0) == f"{made}/packed/000000.tar/a_png%2Erf%2E8a7d.png"
    assert torch.equal(packed.order(3, 1), folder.order(3, 1)), "one archive is one window"
    report = convert_data(f"{annotations}:tar:{made}/packed", to="coco", out=made / "new.json")
    assert report.to_json()["spec"] == f"coco:{made}/new.json:tar:{made}/packed"


def test_what_no_archive_holds_is_listed_at_once(made: Path) -> None:
    path = made / "set" / "instances.json"
    document = json.loads(path.read_text())
    names = [row["file_name"] for row in document["images"]]
    document["images"][1]["file_name"], document["images"][2]["file_name"] = "gone.png", f"deep/{names[2]}"
    path.write_text(json.dumps(document))
    with pytest.raises(AnnotationError) as caught:
        open_source([f"coco:{path}:tar:{made}/packed"], RULES)
    assert "gone.png is missing" in str(caught.value)
    assert f"deep/{names[2]} is missing (did you mean '{names[2]}'?)" in str(caught.value)
    assert check_data(f"coco:{path}:tar:{made}/packed").problem_count == 2


def test_an_image_in_two_archives_is_left_out(made: Path) -> None:
    names = [path.name for path in sorted((made / "set" / "images").iterdir())]
    with tarfile.open(made / "packed" / "000001.tar", "w") as archive:
        archive.add(made / "set" / "images" / names[2], names[2])
    source = open_source([f"coco:{made}/set/instances.json:tar:{made}/packed"], RULES)
    assert [(Path(entry.path).name, entry.reason) for entry in source.skipped] == [(names[2], "duplicate-name")]


def test_the_specification_is_recorded_with_absolute_paths(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (made / "tar").mkdir()
    recorded = absolute_spec("coco:set/instances.json:tar:packed/{000000..000000}.tar:window=2")
    assert recorded == f"coco:{made}/set/instances.json:tar:{made}/packed/{{000000..000000}}.tar:window=2"
    monkeypatch.chdir("/")
    assert len(open_source([recorded], RULES)) == 6
    monkeypatch.chdir(made / "packed")
    for pattern in ("{000000..000000}.tar", "*.tar", "000000.tar", "."):
        assert absolute_spec(f"tar:{pattern}") == f"tar:{made / 'packed'}{'' if pattern == '.' else '/' + pattern}"
