"""Datasets of Hugging Face against folders with the same images; each is made here."""

import io
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.shapes import write_shapes
from ssldet.data import table_images
from ssldet.data.images import ImageRules
from ssldet.data.loader import training_batches
from ssldet.data.problems import same
from ssldet.data.sources import absolute_spec, open_source
from ssldet.data.table_images import TableSource
from ssldet.errors import AnnotationError, DataError, SetupError
from ssldet.source import Source
from ssldet.types import Sample
from ssldet.verbs import check_data
from tests.hub_server import HubServer, Repository
from tests.tables import as_dataset, library

RULES = ImageRules()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven images with objects as COCO, saved by the library, and as Parquet in two splits."""
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    write_shapes(tmp_path / "set", images=7, size=48, objects=(0, 3))
    whole = as_dataset(tmp_path / "set" / "instances.json")
    whole.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    whole.select(range(5)).to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
    whole.select(range(5, 7)).to_parquet(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet")
    return tmp_path


def opened(spec: str) -> Source:
    return open_source([spec], RULES)


def unlabelled(made: Path) -> Path:
    """Save images alone."""
    rows = as_dataset(made / "set" / "instances.json").select_columns(["image"])
    rows.save_to_disk(str(made / "images"))
    return made / "images"


def test_labels_and_pixels_are_those_of_the_coco_file(made: Path) -> None:
    coco = opened(f"coco:{made}/set/instances.json")
    for spec in (f"hf:{made}/saved", f"hf:{made}/parquet:train+test"):
        table = opened(spec)
        assert isinstance(table, LabelledImages)
        assert (len(table), table.classes, table.image_ids) == (7, coco.classes, coco.image_ids)  # type: ignore[attr-defined]
        for index in range(7):
            ours, theirs = table[index], coco[index]
            assert torch.allclose(ours.targets.boxes, theirs.targets.boxes, atol=1e-6)
            assert torch.equal(ours.targets.labels, theirs.targets.labels)
            assert torch.equal(ours.image, theirs.image)
        assert table.name_of(3) == f"{spec}[3]"
        assert table.path_of(3) is None
    assert check_data(f"hf:{made}/saved").counts == check_data(f"coco:{made}/set/instances.json").counts


def test_images_alone_are_judged_like_files(made: Path) -> None:
    """Cells hold bytes, or nothing, or a path, which is refused where it depends on the working folder."""
    pyarrow = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    file = sorted((made / "set" / "images").iterdir())[0]
    thin = io.BytesIO()
    Image.new("RGB", (600, 20)).save(thin, "PNG")
    whole = file.read_bytes()
    bad = [b"", b"GIF8 no image", thin.getvalue()]
    cells = [{"bytes": content, "path": None} for content in (whole, *bad, whole)]
    cells += [None, {"bytes": None, "path": "relative.png"}, {"bytes": None, "path": str(file)}]
    place = made / "of another program.parquet"
    pyarrow.write_table(library().Dataset.from_dict({"image": cells}).data.table, place)
    source = opened(f"hf:{place}")
    assert isinstance(source, TableSource)
    assert [source[index].key for index in range(len(source))] == ["0", "4", "7"]
    assert torch.equal(source[0].image, source[2].image)
    assert [skipped.reason for skipped in source.skipped] == ["empty", "not-an-image", "too-thin", "missing", "missing"]
    assert source.skipped[0].path == f"hf:{place}[1]"
    assert check_data(f"hf:{place}").counts == {"images": 3}


def test_training_on_rows_is_training_on_files(made: Path) -> None:
    """Whether workers are forked or get a pickled source, which maps the same file instead of holding a copy."""
    table, folder = opened(f"hf:{unlabelled(made)}"), opened(str(made / "set" / "images"))
    travelled = pickle.dumps(table)
    assert len(travelled) < 6000, "no image travels"
    assert same(pickle.loads(travelled)[4], table[4])
    both = [
        training_batches(source, whole, seed=7, batch_size=2, start_step=3, total_steps=6, workers=workers)
        for source, workers in ((table, 2), (folder, 0))
    ]
    for ours, theirs in zip(*both, strict=True):
        assert torch.equal(ours.images, theirs.images)


def whole(sample: Sample, generator: torch.Generator) -> Sample:
    return sample


def test_an_index_is_kept_and_made_anew(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_images, "MANY", 3)
    place = unlabelled(made)
    first = opened(f"hf:{place}")
    with monkeypatch.context() as patched:
        patched.setattr(table_images, "_judged", None)
        assert opened(f"hf:{place}").fingerprint == first.fingerprint
    for kept in (made / "home" / "tables").glob("*.safetensors"):
        kept.write_bytes(b"damaged")
    assert opened(f"hf:{place}").fingerprint == first.fingerprint
    assert opened(f"hf:{made}/parquet:test").fingerprint != first.fingerprint


def test_what_is_wrong_with_labels_is_said_at_once(made: Path) -> None:
    hf = library()
    rows = as_dataset(made / "set" / "instances.json").to_list()
    box = [1.0, 2.0, 3.0, 4.0]
    rows[0]["objects"] = [{"bbox": [1.0, 2.0, -3.0, 4.0], "category": 0}, {"bbox": box, "category": -1}]
    rows[2]["objects"] = [{"bbox": [1.0, 2.0, float("nan"), 4.0], "category": 2}]
    features = as_dataset(made / "set" / "instances.json").features
    hf.Dataset.from_list(rows, features=features).save_to_disk(str(made / "wrong"))
    with pytest.raises(AnnotationError) as caught:
        opened(f"hf:{made}/wrong")
    said = str(caught.value)
    assert "3 problems" in said
    assert "row 0, object 0.bbox: [1.0, 2.0, -3.0, 4.0]" in said
    assert "row 0, object 1.category: -1; must be one of 3 classes" in said
    assert "row 2, object 0.bbox" in said
    assert check_data(f"hf:{made}/wrong").problem_count == 3


def test_ids_flags_and_sizes_are_checked_as_those_of_coco_are(made: Path) -> None:
    hf = library()
    rows = as_dataset(made / "set" / "instances.json").to_list()
    for number, row in enumerate(rows):
        row |= {"image_id": max(number, 1), "height": 48.0, "width": 48.0 if number != 3 else 47.5}
        row["objects"] = [{"bbox": [1.0, 2.0, 3.0, 4.0], "category": 1, "iscrowd": "0" if number == 4 else None}]
    hf.Dataset.from_list(rows).cast_column("image", hf.Image()).save_to_disk(str(made / "odd"))
    said = {entry["where"]: entry["what"] for entry in check_data(f"hf:{made}/odd").problems}
    assert said == {
        "row 4, object 0.iscrowd": "'0'",
        "row 1.image_id": "1 is also the id of row 0",
        "row 3.width": "47.5",
    }


def test_ids_may_be_text_and_sizes_may_be_floats(made: Path) -> None:
    hf = library()
    rows = as_dataset(made / "set" / "instances.json").to_list()
    for number, row in enumerate(rows):
        row |= {"image_id": f"photo {number}", "height": 48.0, "width": 48.0}
    hf.Dataset.from_list(rows).cast_column("image", hf.Image()).save_to_disk(str(made / "text"))
    source = opened(f"hf:{made}/text")
    assert isinstance(source, LabelledImages)
    assert source.image_ids == tuple(f"photo {number}" for number in range(7))
    rows[2]["height"] = 47.0
    hf.Dataset.from_list(rows).cast_column("image", hf.Image()).save_to_disk(str(made / "wrong"))
    with pytest.raises(AnnotationError, match=r"row 2: states 47 x 48 \(height x width\), the image has 48 x 48"):
        opened(f"hf:{made}/wrong")


def test_an_object_of_lists_and_classes_without_names(made: Path) -> None:
    whole = as_dataset(made / "set" / "instances.json")
    lists = [
        {name: [record[name] for record in objects] for name in ("bbox", "category")} for objects in whole["objects"]
    ]
    for objects in lists:
        objects["category"] = [("circle", "square", "triangle")[number] for number in objects["category"]]
    whole.remove_columns(["objects", "image_id"]).add_column("objects", lists).save_to_disk(str(made / "lists"))
    named, source = opened(f"hf:{made}/saved"), opened(f"hf:{made}/lists")
    assert source.classes == ("circle", "square", "triangle")
    for index in range(7):
        assert same(replace(source[index], key=named[index].key), named[index])


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("saved:trian", r"no split 'trian' \(did you mean 'train'\?\); there is train"),
        ("parquet", r"has the splits test, train; name one, or join them"),
        ("savde", r"no file of Parquet there, and no folder of save_to_disk \(did you mean 'saved'\?\)"),
        ("set", r"no file of Parquet there"),
        ("damaged.parquet", r"damaged\.parquet: can't be read \("),
        ("plain", r"no column of images among number"),
    ],
)
def test_what_can_not_be_opened_is_one_line(made: Path, rest: str, said: str) -> None:
    (made / "damaged.parquet").write_bytes(b"PAR1 and no more")
    library().Dataset.from_dict({"number": [1, 2]}).save_to_disk(str(made / "plain"))
    with pytest.raises(DataError, match=said) as caught:
        opened(f"hf:{made}/{rest}")
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_unless_it_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (made / "hub").mkdir()
    assert absolute_spec("hf:saved:train") == f"hf:{made}/saved:train"
    assert absolute_spec("hf:hub:somebody/photos:train") == "hf:hub:somebody/photos:train"
    with pytest.raises(DataError, match="no file of Parquet"):
        opened("hf:somebody/photos")
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    with pytest.raises(SetupError, match="SSLDET_OFFLINE forbids to fetch it"):
        opened("hf:hub:somebody/photos")
    with pytest.raises(DataError, match="write hf:hub:USER/NAME"):
        opened("hf:hub:photos")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'ssldet\[hf\]'"):
        opened("hf:saved")


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub of this test, with one data set; nothing that another hub sent is kept."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    files = {
        str(path.relative_to(made / "parquet")): path.read_bytes() for path in (made / "parquet").rglob("*.parquet")
    }
    server.repositories["ada/photos"] = Repository(private=False, files=files)
    library()
    for name, value in (
        ("datasets.config.HF_ENDPOINT", server.address),
        ("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache"),
        ("huggingface_hub.constants.ENDPOINT", server.address),
        (
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        ),
        ("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub")),
        ("huggingface_hub.constants.HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(name, value)
    monkeypatch.delenv("SSLDET_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_set_on_the_hub_is_fetched_where_it_is_asked_for(made: Path, hub: HubServer) -> None:
    with pytest.raises(DataError, match="no file of Parquet"):
        opened("hf:ada/photos")
    assert hub.asked == []
    fetched, here = opened("hf:hub:ada/photos:train"), opened(f"hf:{made}/parquet:train")
    assert any(line.startswith("GET /datasets/ada/photos/resolve/") for line in hub.asked)
    assert len(fetched) == len(here)
    assert torch.equal(fetched[1].image, here[1].image)
    revision = hub.repositories["ada/photos"].commit
    assert len(opened(f"hf:hub:ada/photos@{revision}:train+test")) == 7
    with pytest.raises(DataError, match=r"no split 'tran' \(did you mean 'train'\?\)"):
        opened("hf:hub:ada/photos:tran")
    with pytest.raises(SetupError, match="ada/photos has no branch, tag or commit v1"):
        opened("hf:hub:ada/photos@v1")
    with pytest.raises(SetupError, match=r"hf:hub:ada/other: can't be fetched \(.*doesn't exist"):
        opened("hf:hub:ada/other")
