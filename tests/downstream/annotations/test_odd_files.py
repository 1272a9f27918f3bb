"""Odd files: refused in one clear message and in no time, or read; never a crash, a wait or a wrong value."""

import json
import os
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ssldet.data.files import nearest_file
from ssldet.errors import AnnotationError
from ssldet.verbs import check_data

BOX = '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0}'
IMAGE = '{"id": 1, "file_name": "a.png", "width": 60, "height": 40}'
WHOLE = f'{{"images": [{IMAGE}],\n"annotations": [{BOX}],\n"categories": [{{"id": 1, "name": "cup"}}]}}'


@pytest.fixture(autouse=True)
def _in_no_time() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 20


def coco(folder: Path, text: str) -> str:
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    (folder / "ann.json").write_text(text)
    return f"coco:{folder / 'ann.json'}:{folder}"


def told(spec: str) -> str:
    """What a check says is wrong; at most a few lines."""
    inspection = check_data(spec)
    assert not inspection.sound
    assert len(inspection.problems) <= 4
    return "\n".join(f"{entry['where']}: {entry['what']}; {entry['remedy']}" for entry in inspection.problems)


REPEATED = {
    "at the top": (WHOLE[:-1] + ',\n"annotations": []}', "line 4: $: the key 'annotations' stands twice"),
    "in a row": (
        WHOLE.replace('"area": 72', '"bbox": [1, 1, 1, 1]'),
        "line 2: $.annotations[0]: the key 'bbox' stands twice",
    ),
}
REPEATED["escaped"] = (WHOLE.replace('"area": 72', '"bb\\u006fx": 3'), "$.annotations[0]: the key 'bbox'")


@pytest.mark.parametrize("name", REPEATED)
def test_a_key_that_stands_twice_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    text, says = REPEATED[name]
    assert says in told(coco(tmp_path, text))


def test_keys_repeat_in_yaml_and_xml_as_well(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: .\nnames: [cup]\nnames: [cat]\n")
    assert "line 3: not YAML ('names' stands twice)" in told(f"yolo:{tmp_path}")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>cup</name>{box}{box}</object></annotation>")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    assert "a.xml:1: <object> with 2 <bndbox>; keep one" in told(f"voc:{tmp_path}")


ODD = {
    "deep": ("[" * 50_000, "nested too deeply"),
    "half a character in a file name": (WHOLE.replace("a.png", "\\ud800.png"), "$.images[0].file_name"),
    "half a character in a class": (WHOLE.replace("cup", "\\ud800"), "$.categories[0].name"),
    "a side of 400 digits": (WHOLE.replace("60", "9" * 400), "$.images[0].width"),
    "a side of 1e300": (WHOLE.replace("60", "1e300"), "$.images[0].width"),
    "an id of 400 digits": (WHOLE.replace('"image_id": 1', f'"image_id": {"9" * 400}'), "$.annotations[0].image_id"),
    "a number of 5000 digits": (WHOLE.replace("60", "9" * 5000), "a number that can't be read"),
    "a box of 1e300": (WHOLE.replace("[1, 2, 9", "[1, 2, 1e300"), "$.annotations[0].bbox[2]"),
    "a box of 400 digits": (WHOLE.replace("[1, 2, 9", f"[1, 2, {'9' * 400}"), "$.annotations[0].bbox[2]"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_are_refused_with_their_place(tmp_path: Path, name: str) -> None:
    text, says = ODD[name]
    assert says in told(coco(tmp_path, text))


def test_odd_sizes_in_xml_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    for side in ("1e300", "9" * 400, "-1", "nan"):
        size = f"<size><width>{side}</width><height>40</height></size>"
        (tmp_path / "a.xml").write_text(f"<annotation>{size}</annotation>")
        assert "a.xml:1: <size>; expects width and height" in told(f"voc:{tmp_path}")


def test_many_classes_cost_no_time(tmp_path: Path) -> None:
    document = json.loads(WHOLE)
    document["categories"] = [{"id": number, "name": f"class {number}"} for number in range(20_000)]
    assert check_data(coco(tmp_path, json.dumps(document))).counts["classes"] == 20_000
    names = "".join(f"- name {number}\n" for number in range(50_000))
    (tmp_path / "data.yaml").write_text(f"train: .\nnames:\n{names}- name 7\n")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    assert "'name 7' is the name of two classes" in told(f"yolo:{tmp_path}")


def test_brackets_in_yaml_cost_no_time(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("a: " + "[" * 50_000)
    assert "not YAML" in told(f"yolo:{tmp_path}")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name in (tmp_path / "pipe.json", "/dev/zero"):
        assert "not a regular file" in told(f"coco:{name}:{tmp_path}")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.xml")
    assert "a.xml: can't be read (a pipe, not a regular file)" in told(f"voc:{tmp_path}")
    (tmp_path / "data.yaml").write_text("train: .\nnames: [cup]\n")
    os.mkfifo(tmp_path / "a.txt")
    assert "not a regular file" in told(f"yolo:{tmp_path}")
    os.mkfifo(tmp_path / "list.txt")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cup]\n")
    assert check_data(f"yolo:{tmp_path}").problem_count == 1


@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("A.PNG", "a.png"),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
        ("a%20b.png", "a b.png"),
        ("sub/a.png", "a.png"),
        ("x\\a.png", "X/a.png"),
        ("a.jpg", "a.png"),
    ],
)
def test_a_missing_file_is_answered_with_the_nearest(tmp_path: Path, stated: str, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    (tmp_path / "other.png").touch()
    assert nearest_file(tmp_path, stated) == there
    assert nearest_file(tmp_path, "zebra.png") is None


def test_a_check_names_the_nearest_file(tmp_path: Path) -> None:
    assert "is missing (did you mean 'a.png'?)" in told(coco(tmp_path, WHOLE.replace("a.png", "A.png")))


def test_a_missing_folder_of_images_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    for name in "abcdefgh":
        (tmp_path / f"Annotations/{name}.xml").write_text("<annotation/>")
    assert "JPEGImages: no such folder of images" in told(f"voc:{tmp_path}")


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    text = WHOLE.replace("cup", "c\\u001b[2Jup\\nfaked").replace("[1, 2, 9", "[1, 2, -9")
    spec = coco(tmp_path, text.replace("a.png", "b\\u001b[31m.png"))
    assert "\x1b" not in str(check_data(spec))
    assert "\\x1b" in str(check_data(spec))
    sound = str(check_data(coco(tmp_path, WHOLE.replace("cup", "c\\u001bup\\nfaked"))))
    assert "\x1b" not in sound
    assert "\nfaked" not in sound
    with pytest.raises(AnnotationError) as caught:
        raise AnnotationError(str(check_data(spec)))
    assert "\x1b" not in str(caught.value)
