"""Damaged annotation files: read, or refused with an `AnnotationError`; nothing else ever comes out."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from downstream.annotations.coco import read_coco
from downstream.annotations.labels import Labels
from downstream.annotations.voc import read_voc
from ssldet.errors import AnnotationError

COCO = json.dumps(
    {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}, {"id": 3, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2.5, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 9, "bbox": [1e1, 2, 3, 4], "segmentation": [[1, 2, 3, 4]]},
        ],
        "categories": [{"id": 9, "name": "cup"}],
    }
).encode()
VOC = (
    b"<annotation><size><width>60</width><height>40</height></size><object><name>dog</name><difficult>0</difficult>"
    b"<bndbox><xmin>11</xmin><ymin>5.5</ymin><xmax>30</xmax><ymax>34</ymax></bndbox></object></annotation>"
)
WORDS = [b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'""', b"true", b'"1"', b"<a>", b"</", b"&b;", b"\xff", b"\0"]


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Change a digit, or cut, overwrite, drop, repeat or replace a token."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 2)):
        start = chance.randrange(len(data))
        end = min(len(data), start + chance.choice([1, 1, 2, 5, 20]))
        kind = chance.randrange(10)
        if kind == 0:
            data[start:end] = chance.choice(WORDS)
        elif kind == 1:
            data[start] = chance.randrange(256)
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end]
        elif kind > 4:
            digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()] or [0]
            data[chance.choice(digits)] = ord(chance.choice("0123456789-.e"))
        else:
            tokens = bytes(data).replace(b":", b",").replace(b"[", b",").split(b",")
            token = chance.choice(tokens)
            data = bytearray(bytes(data).replace(token, chance.choice(WORDS), 1)) if token else data
        data = data or bytearray(b" ")
    return bytes(data)


def voc(folder: Path) -> Callable[[bytes], Labels]:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/trainval.txt").write_text("a\n")

    def read(data: bytes) -> Labels:
        (folder / "Annotations/a.xml").write_bytes(data)
        return read_voc(str(folder))

    return read


def coco(folder: Path) -> Callable[[bytes], Labels]:
    def read(data: bytes) -> Labels:
        (folder / "ann.json").write_bytes(data)
        return read_coco(folder / "ann.json")

    return read


@pytest.mark.parametrize(("form", "whole"), [(coco, COCO), (voc, VOC)], ids=["coco", "voc"])
def test_damage_is_read_or_refused(
    tmp_path: Path, form: Callable[[Path], Callable[[bytes], Labels]], whole: bytes
) -> None:
    read, chance = form(tmp_path), random.Random(0)
    assert len(read(whole).boxes)
    sound, refused = [], []
    for _ in range(400):
        try:
            sound.append(read(damaged(whole, chance)))
        except AnnotationError as error:
            refused.append(str(error))
    assert min(len(sound), len(refused)) > 40
    assert all(str(tmp_path) in message for message in refused)
    assert all((labels.boxes[:, 2:] > 0).all() and (labels.areas > 0).all() for labels in sound)
