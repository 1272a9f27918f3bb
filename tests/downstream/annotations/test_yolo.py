"""Every known way in which a YOLO folder goes wrong: refused with its file and line, or put right and counted."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.yolo import BOXED, open_yolo
from downstream.annotations.yolo_files import label_file
from ssldet.data.images import ImageRules
from ssldet.errors import AnnotationError

YAML = "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cup\n  1: cat\n"
ROWS = "1 0.5 0.25 0.2 0.5\n0 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n"


def write(folder: Path, rows: str | bytes = ROWS, description: str | bytes = YAML) -> Path:
    """Write images `a`, labelled, and `b`, without a label file, of 60 x 40 pixels."""
    for name in ("images/train", "labels/train", "images/val"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem in "ab":
        if not (folder / f"images/train/{stem}.jpg").exists():
            Image.new("RGB", (60, 40), (10, 90, 30)).save(folder / f"images/train/{stem}.jpg")
    for path, text in (("labels/train/a.txt", rows), ("data.yaml", description)):
        (folder / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def opened(rest: object, *, masks: bool = False) -> LabelledImages:
    return open_yolo(str(rest), ImageRules(min_side=17, max_pixels=10**6), masks=masks)


def test_a_clean_folder_opens(tmp_path: Path) -> None:
    source = opened(write(tmp_path))
    assert source.classes == ("cup", "cat")
    assert source.keys == ("a.jpg", "b.jpg")
    first = source[0]
    assert first.targets.labels.tolist() == [1, 0]
    expected = [[0.5, 0.25, 0.2, 0.5], [0.25, 0.3, 0.3, 0.4]]
    assert np.allclose(first.targets.boxes.numpy(), expected, atol=1e-6)
    assert first.targets.masks is None
    assert len(source[1].targets) == 0
    assert source.labels.notes["images without a label file, taken as images without objects"] == 1
    assert source.ground_truth()["annotations"][0]["bbox"] == pytest.approx([24, 0, 12, 20])


REFUSED = {
    "pixels": ("0 30 20 10 10", "labels/train/a.txt:1: '30', '20', '10', '10'", "not pixels"),
    "nan": ("0 0.5 nan 0.1 0.1", "a.txt:1: 'nan'", "from 0 to 1"),
    "text": ("0 0.5 0.5 wide 0.1", "a.txt:1: 'wide'", "from 0 to 1"),
    "three numbers": ("0 0.5 0.5 0.1", "a.txt:1: 4 words", "centre x"),
    "confidence": ("\n0 0.5 0.5 0.1 0.1 0.9", "a.txt:2: 6 words", "confidence"),
    "unknown class": ("2 0.5 0.5 0.1 0.1", "a.txt:1: class '2'", "from 0 to 1"),
    "negative class": ("-1 0.5 0.5 0.1 0.1", "a.txt:1: class '-1'", "data.yaml"),
    "class by name": ("cup 0.5 0.5 0.1 0.1", "a.txt:1: class 'cup'", "data.yaml"),
    "negative width": ("0 0.5 0.5 -0.005 0.1", "a.txt:1: ", "can't be negative"),
    "two points": ("0 0.5 0.5 0.1 0.1 0.2 0.3 0.4", "a.txt:1: 8 words", "polygon"),
    "no text": (b"0 0.5 \xff\xfe", "labels/train/a.txt: not utf-8", "row of numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_malformed_row_is_refused(tmp_path: Path, name: str) -> None:
    rows, place, advice = REFUSED[name]
    with pytest.raises(AnnotationError) as caught:
        opened(write(tmp_path, rows))
    assert place in str(caught.value)
    assert advice in str(caught.value)


DESCRIPTIONS = {
    "no names": ("train: images/train", "names: None"),
    "gap in the numbers": (YAML.replace("1: cat", "2: cat"), "numbers from 0"),
    "truth value": ("train: images/train\nnames: [yes, cat]", "in quotes"),
    "same name": ("train: images/train\nnames: [cat, cat]", "two classes"),
    "count": (YAML + "nc: 3\n", "nc: 3 with 2 names"),
    "no split": ("val: images/train\nnames: [cat]", "no split 'train'; there is val"),
    "split of numbers": ("train: 3\nnames: [cat]", "expects a folder"),
    "no folder": ("train: images/trian\nnames: [cat]", "no such file or folder"),
    "not yaml": ("train: [images", "not YAML"),
    "a list": ("- a\n- b", "expects entries"),
    "an alias": ("a: &a [x]\nb: [*a, *a]\ntrain: images/train\nnames: [cat]", "alias"),
    "code": ("train: !!python/object/apply:os.system [touch x]\nnames: [cat]", "not YAML"),
    "deep": ("a: " + "[" * 1200, "not YAML"),
    "keypoints of no size": (YAML + "kpt_shape: [0, 2]\n", "kpt_shape: [0, 2]; expects [points, 2] or"),
    "keypoints as text": (YAML + "kpt_shape: 17x3\n", "kpt_shape: '17x3'; expects"),
    "keypoints untold": (YAML + "task: pose\n", "pose without kpt_shape; state kpt_shape"),
    "mirrored keypoints untold": (YAML + "flip_idx: [1, 0]\n", "flip_idx without kpt_shape"),
    "another task": (YAML + "task: classify\n", "task: 'classify'; expects labels of objects"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_faulty_description_is_refused(tmp_path: Path, name: str) -> None:
    text, advice = DESCRIPTIONS[name]
    with pytest.raises(AnnotationError) as caught:
        opened(write(tmp_path, description=text))
    assert advice in str(caught.value)


@pytest.mark.parametrize(("shape", "points"), [("[3, 2]", "0.3 0.4 0.5 0.6 0.6 0.5"), ("[2, 3]", "0.3 0.4 2 0 0 0")])
def test_keypoints_are_no_polygon(tmp_path: Path, shape: str, points: str) -> None:
    rows = f"1 0.5 0.5 0.3 0.4 {points}\n0 0.25 0.25 0.1 0.2\n"
    source = opened(write(tmp_path, rows, YAML + f"kpt_shape: {shape}\n"))
    assert source.ground_truth()["annotations"][0]["bbox"] == pytest.approx([21, 12, 18, 16])
    assert source.labels.notes["rows with keypoints, of which the box was read"] == 1
    with pytest.raises(AnnotationError, match=r"a\.txt:1: a box; has no mask"):
        opened(tmp_path, masks=True)


def test_rows_must_have_the_keypoints_that_are_stated(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.txt:1: 9 words .*and 6 numbers of keypoints, as kpt_shape"):
        opened(write(tmp_path, "0 0.5 0.5 0.1 0.1 0.2 0.3 0.4 0.5", YAML + "kpt_shape: [3, 2]\n"))


def test_keypoints_that_nobody_stated_are_suspected(tmp_path: Path) -> None:
    pose, polygon = "0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.5", "1 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5"
    assert opened(write(tmp_path, pose)).labels.notes[BOXED] == 1
    assert BOXED not in opened(write(tmp_path, f"{pose}\n{polygon}")).labels.notes


def test_an_oriented_box_gives_the_upright_box_around_it(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "0 0.5 0.1 0.9 0.5 0.5 0.8 0.1 0.5", YAML + "task: obb\n"))
    assert source.ground_truth()["annotations"][0]["bbox"] == pytest.approx([6, 4, 48, 28])


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path, "0 3 3 3 3\n7 0.5 0.5 0.1 0.1\n")
    (folder / "labels/train/b.txt").write_text("0 0.5\n")
    with pytest.raises(AnnotationError, match="3 problems") as caught:
        opened(folder)
    for place in ("a.txt:1", "a.txt:2", "b.txt:1"):
        assert place in str(caught.value)


def test_labels_in_the_wrong_place_are_not_taken_for_images_without_objects(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "labels").rename(folder / "lables")
    with pytest.raises(AnnotationError, match="none of 2 images has a label file"):
        opened(folder)


@pytest.mark.parametrize(
    ("description", "rest"),
    [
        ("train: ../train/images\nnames: [cup, cat]", ""),
        ("path: ../root\ntrain: [train/images]\nnames: [cup, cat]", ":train"),
        ("train: list.txt\nnames: {0: cup, 1: cat}\nnc: 2", "/data.yaml"),
        ("valid: x\nval: train/images\nnames: [cup, cat]", ":val"),
    ],
)
def test_the_layouts_of_exporters_are_found(tmp_path: Path, description: str, rest: str) -> None:
    root = tmp_path / "root"
    for name in ("images", "labels"):
        (root / "train" / name).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(root / "train/images/a.png")
    (root / "train/labels/a.txt").write_text("1 0.5 0.5 0.5 0.5")
    (root / "list.txt").write_text("train/images/a.png\n")
    (root / "data.yaml").write_text(description)
    source = opened(f"{root}{rest}")
    assert source.classes == ("cup", "cat")
    assert source[0].targets.labels.tolist() == [1]


def test_labels_may_lie_beside_the_images(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (60, 40)).save(tmp_path / "set/a.png")
    (tmp_path / "set/a.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("train: set\nnames: [cup]")
    assert len(opened(tmp_path)[0].targets) == 1
    assert label_file(Path("/images/x/images/t/a.b.jpg")) == Path("/images/x/labels/t/a.b.txt")


def test_editors_of_other_systems_are_understood(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        source = opened(write(tmp_path, ROWS.replace("\n", "\r\n").encode(encoding), YAML.encode(encoding)))
        assert len(source[0].targets) == 2


def test_repeated_and_overhanging_rows(tmp_path: Path) -> None:
    source = opened(write(tmp_path, "0 0.5 0.5 0.2 0.2\n0 0.5  0.5 0.2 0.2\n1.0 1.005 0.5 0.1 0.1\n"))
    assert source.labels.notes["repeated rows, taken once"] == 1
    sample = source[0]
    assert sample.targets.labels.tolist() == [0, 1]
    assert float((sample.targets.boxes[:, 0] + sample.targets.boxes[:, 2] / 2).max()) <= 1 + 1e-6


def test_polygons_become_masks_when_asked(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"a\.txt:1: a box; has no mask"):
        opened(write(tmp_path), masks=True)
    sample = opened(write(tmp_path, ROWS.splitlines()[1]), masks=True)[0]
    assert sample.targets.masks is not None
    rows, columns = np.nonzero(sample.targets.masks[0].numpy())
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (6, 24, 4, 20)


def test_damage_is_read_or_refused(tmp_path: Path) -> None:
    chance, words = random.Random(0), [b"nan", b"-", b"\xff", b"\0", b"[", b"{", b"&a ", b"*a", b"1e999", b": ", b"\n"]
    sound, refused = 0, []
    for turn in range(300):
        parts = {"rows": bytearray(ROWS.encode()), "description": bytearray(YAML.encode())}
        data = parts["rows" if turn % 2 else "description"]
        start = chance.randrange(len(data))
        data[start : start + chance.choice([0, 1, 1, 4])] = chance.choice([*words, bytes([chance.randrange(32, 127)])])
        try:
            labels = opened(write(tmp_path, bytes(parts["rows"]), bytes(parts["description"]))).labels
            assert (labels.boxes[:, 2:] > 0).all()
            sound += 1
        except AnnotationError as error:
            refused.append(str(error))
    assert min(sound, len(refused)) > 30
    assert all(str(tmp_path) in message for message in refused)


def test_label_files_are_found_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "labels/train/a.txt").rename(root / "labels/train/a.TXT")
    assert len(opened(root)[0].targets) == 2


def test_labels_of_images_that_are_not_read_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "images/train/b.jpg").rename(root / "images/train/b.heic")
    for name, text in (("b", ROWS), ("gone", ROWS), ("classes", "cup\ncat\n"), ("empty", "")):
        (root / f"labels/train/{name}.txt").write_text(text)
    notes = opened(root).labels.notes
    assert [count for what, count in notes.items() if "not read; the first is 'labels/train/b.txt'" in what] == [2]


def test_images_of_other_splits_in_the_same_folder_own_their_labels(tmp_path: Path) -> None:
    root = write(tmp_path, description="train: train.txt\nnames: [cup, cat]")
    (root / "train.txt").write_text("images/train/a.jpg\n")
    (root / "labels/train/b.txt").write_text(ROWS)
    assert opened(root).labels.notes == {}


def test_images_that_share_a_label_file_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path)
    Image.new("RGB", (60, 40)).save(root / "images/train/a.png")
    notes = opened(root).labels.notes
    assert notes["images share their label file with one of the same name and another ending"] == 2


def test_numbers_are_those_that_annotation_tools_write(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"'0\.2_0'"):
        opened(write(tmp_path, "0 0.5 0.5 0.2_0 0.1"))


def test_two_label_files_of_one_image_must_agree(tmp_path: Path) -> None:
    beside = write(tmp_path) / "images/train/a.txt"
    beside.write_text(ROWS.replace("\n", " \n"))
    assert len(opened(tmp_path)[0].targets) == 2
    beside.write_text("0 0.5 0.25 0.2 0.5\n")
    said = r"images/train/a\.txt: another content than '?labels/train/a\.txt'?, .*; keep one of the two files"
    with pytest.raises(AnnotationError, match=said):
        opened(tmp_path)
