"""Odd values and forged headers: one line each, before anything is built. Times measured on one core stand beside."""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ssldet
from ssldet.classes import match_classes
from ssldet.data.images import ImageRules, open_images
from ssldet.data.sources import open_source
from ssldet.documents import OddDocumentError, parse_json, parse_json_object, parse_yaml
from ssldet.errors import CheckpointError, ConfigError, DataError
from ssldet.verbs.opening import open_model
from ssldet.weights.detectron2 import configuration_beside
from ssldet.weights.words import choose_backbone

BOUND = 6.0
"""Seconds that a case may take: three times what a user may wait, because machines of tests are slow and shared."""


@contextmanager
def soon() -> Iterator[None]:
    begin = time.perf_counter()
    yield
    assert time.perf_counter() - begin < BOUND


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def forged(form: str) -> bytes:
    """A tiny file whose header claims the largest image that its format can."""
    if form == "PNG":
        return png(100_000, 100_000)
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    content = bytearray(buffer.getvalue())
    if form == "JPEG":
        start = content.index(b"\xff\xc0") + 5
        content[start : start + 4] = struct.pack(">HH", 65_535, 65_535)
    elif form == "GIF":
        content[6:10] = struct.pack("<HH", 65_535, 65_535)
    elif form == "BMP":
        content[18:26] = struct.pack("<ii", 100_000, 100_000)
    elif form == "WEBP":
        content[21:25] = b"\xff\xff\xff\xff"
    else:
        directory = struct.unpack("<I", content[4:8])[0]
        for entry in range(struct.unpack("<H", content[directory : directory + 2])[0]):
            place = directory + 2 + 12 * entry
            if struct.unpack("<H", content[place : place + 2])[0] in {256, 257}:
                content[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 100_000)
    return bytes(content)


def test_headers_of_images_that_claim_absurd_sizes(tmp_path: Path) -> None:  # 0.01 s
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    forms = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]
    for form in forms:
        (tmp_path / f"{form}.{form.lower()}").write_bytes(forged(form))
    with soon():
        source = open_images([tmp_path], ImageRules())
    assert len(source) == 1
    reasons = {Path(entry.path).stem: entry.reason for entry in source.skipped}
    assert reasons.keys() == set(forms)
    assert {reasons[form] for form in forms if form != "WEBP"} == {"too-large"}


def safetensors(path: Path, metadata: dict[str, str], shape: int = 1) -> Path:
    tensors = {"a": {"dtype": "F32", "shape": [shape], "data_offsets": [0, 4 * shape]}}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return path


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 99_000_000, 10**6])
def test_headers_of_safetensors_that_claim_absurd_lengths(length: int, tmp_path: Path) -> None:  # 0.00 s
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 1000)
    with soon(), pytest.raises(CheckpointError) as caught:
        open_model(path)
    assert len(str(caught.value).splitlines()) == 1
    with soon(), pytest.raises(CheckpointError, match="cut off or damaged"):
        open_model(safetensors(path, {}, 10**12))


@pytest.mark.parametrize(
    "header",
    ["[" * 50_000, "[]", "5", "{", '{"schema": 1}', '{"schema": ' + "9" * 400 + "}", '{"schema": ' + "9" * 5000 + "}"],
    ids=lambda header: header[:14],
)
@pytest.mark.parametrize("use", [open_model, lambda path: choose_backbone(str(path))])
def test_headers_of_ours_that_hold_something_else(header: str, use: Callable[[Path], Any], tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", {"ssldet": header})  # 0.00 s
    with soon(), pytest.raises(CheckpointError) as caught:
        use(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) * 2 + 300


def test_options_beside_tensors_that_are_nested_deeply(tmp_path: Path) -> None:
    with soon(), pytest.raises(CheckpointError, match="no importer knows its 1 tensors"):
        open_model(safetensors(tmp_path / "a.safetensors", {"args": "[" * 50_000}))


@pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000, '{"a": ' + "9" * 5000 + "}", "[]", "\x00"])
def test_configurations_of_transformers_that_nobody_writes(text: str, tmp_path: Path) -> None:  # 0.00 s
    (tmp_path / "config.json").write_text(text)
    with soon(), pytest.raises(CheckpointError) as caught:
        open_model(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


BRACKETS = ["[" * 50_000, "{" * 50_000, "- " * 25_000, "? " * 25_000, "[[]" * 17_000]


@pytest.mark.parametrize("text", BRACKETS, ids=lambda text: text[:3])
def test_brackets_in_yaml(text: str, tmp_path: Path) -> None:  # 0.01 s; 2.4 s where the whole was parsed
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "data.yaml").write_text(f"names: {text}")
    with soon(), pytest.raises(CheckpointError, match="can't be read") as caught:
        configuration_beside(tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) == 1
    with soon(), pytest.raises(DataError, match="not YAML") as refused:
        open_source([f"yolo:{tmp_path}"], ImageRules())
    assert len(str(refused.value).splitlines()) == 1


def test_documents_say_what_they_are_not() -> None:
    assert parse_json_object("{}") == {}
    assert parse_yaml("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}
    for text, message in (("[" * 9999, "nested too deeply"), ("[", "Expecting value"), ("9" * 5000, "digits")):
        with pytest.raises(OddDocumentError, match=message):
            parse_json(text)
    with pytest.raises(OddDocumentError, match="holds list instead of an object"):
        parse_json_object("[]")
    with pytest.raises(OddDocumentError, match="alias"):
        parse_yaml("a: &x [1]\nb: *x", aliases=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("detector.width", 10**6),
        ("detector.feedforward", 10**9),
        ("detector.encoder_layers", 10**9),
        ("detector.num_queries", 10**9),
        ("detector.backbone.tiny_channels", "1000000000"),
        ("data.batch_size", 10**9),
        ("data.workers", 10**9),
        ("optim.accumulate", 10**9),
        ("task.eval_side", 10**9),
        ("task.num_patches", 10**9),
        ("seed", "9" * 400),
        ("seed", "9" * 5000),
        ("budget.steps", "1e400"),
    ],
)
def test_numbers_beyond_reason_are_refused_before_anything_is_built(field: str, value: object, tmp_path: Path) -> None:
    with soon(), pytest.raises(ConfigError, match=field) as caught:  # 0.01 s
        ssldet.pretrain(
            tmp_path, recipe="random_query_patch/tiny", out=tmp_path / "run", steps=1, overrides={field: value}
        )
    assert all(len(line) < 300 for line in caught.value.problems)
    assert not (tmp_path / "run").exists()


def coco(folder: Path, name: str, names: list[str]) -> str:
    Image.new("RGB", (40, 40)).save(folder / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}],
        "categories": [{"id": number, "name": word} for number, word in enumerate(names)],
    }
    (folder / name).write_text(json.dumps(document))
    return f"coco:{folder}/{name}:{folder}"


def test_twenty_thousand_categories(tmp_path: Path) -> None:  # 0.14 s, reordered 0.2 s (once 11 s), matched 0.1 s
    names = [f"class {number}" for number in range(20_000)]
    other = [f"class {(number * 7) % 20_000}" for number in range(20_000)]
    first, second = coco(tmp_path, "a.json", names), coco(tmp_path, "b.json", other)
    with soon():
        source = open_source([second], ImageRules(), classes=names)
    assert source.classes == tuple(names)
    assert source[0].targets.labels.tolist() == [35]
    with soon():
        assert len(open_source([first, second], ImageRules())) == 2
    with soon():
        assert match_classes(names, other).rows[1] == 7


@pytest.mark.parametrize("form", ["list", "numbered"])
def test_fifty_thousand_names(form: str, tmp_path: Path) -> None:  # 0.7 s and 1.7 s; once 2.7 s and 6.0 s
    lines = [f"  - n{number}" if form == "list" else f"  {number}: n{number}" for number in range(50_000)]
    (tmp_path / "data.yaml").write_text("train: images\nnames:\n" + "\n".join(lines))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("49999 0.5 0.5 0.2 0.2\n")
    with soon():
        source = open_source([f"yolo:{tmp_path}"], ImageRules())
    assert source[0].targets.labels.tolist() == [49_999]


@pytest.mark.parametrize("name", ["\ud800.jpg", "a\0.jpg"])
def test_lists_of_names_that_no_file_has(name: str, tmp_path: Path) -> None:  # 0.00 s
    (tmp_path / "list.json").write_text(json.dumps(["good.jpg", name]))
    with soon(), pytest.raises(DataError, match=r"\$\[1\]: .* can be no name of a file"):
        open_source([str(tmp_path / "list.json")], ImageRules())
    (tmp_path / "list.json").write_text("[" * 50_000)
    with soon(), pytest.raises(DataError, match="nested too deeply"):
        open_source([str(tmp_path / "list.json")], ImageRules())


@pytest.mark.parametrize("value", ["1e300", "9" * 400, "nan", "-1"])
def test_sizes_of_voc_that_no_image_has(value: str, tmp_path: Path) -> None:  # 0.02 s
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    size, box = "<width>{}</width><height>40</height>", "<xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax>"
    for width, right in ((value, "9"), ("40", value)):
        (tmp_path / "Annotations" / "a.xml").write_text(
            f"<annotation><filename>a.jpg</filename><size>{size.format(width)}<depth>3</depth></size>"
            f"<object><name>dog</name><bndbox>{box.format(right)}</bndbox></object></annotation>"
        )
        with soon(), pytest.raises(DataError, match="1 problem"):
            open_source([f"voc:{tmp_path}:train"], ImageRules())
