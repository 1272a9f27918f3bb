import base64
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ssldet.report.page import Picture, Section, Table, write_page, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>.jpg",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "http://evil.example/x.png",
    "</title><script src=//evil.example></script>",
    "</pre></td></table><iframe srcdoc='<script>'>",
    "</style><style>*{background:url(http://evil.example)}</style>",
    "{{ 7*7 }}{% for x in y %}",
    "<!-- --><meta http-equiv=refresh content=0>",
    "&lt;b&gt; &#x3c;script&#x3e;",
    "\udcff\u202e\x00\x1b[31m",
    "]]><a href=data:text/html;base64,AAAA>x</a>",
    "=cmd|' /C calc'!A0",
    "$\\frac{1}{0}$ ${env:HOME}",
]


class Shape(HTMLParser):
    """What a browser would act on: tags with their attributes, and the schemes of whatever an attribute loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, tuple[str, ...]]] = set()
        self.loads: set[str] = set()
        self.opened: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, tuple(name for name, _ in attrs)))
        self.opened.append(tag)
        self.loads |= {
            (value or "").split(",")[0] for name, value in attrs if name in {"src", "href", "srcset", "action"}
        }

    def handle_data(self, data: str) -> None:
        self.words += data


def _run(folder: Path, words: Sequence[str] = ("ace",), status: str = "finished") -> Path:
    """Write a run folder in which the words stand wherever text may."""
    _previews(folder, 2)
    named = {kind: {f"{kind}{word}": 0.1 for word in words} for kind in ("loss/", "metric/", "")}
    lines = [
        {"kind": "train", "step": step, "loss": 9 / step, **named["loss/"], **named["metric/"], "lr": 1e-4}
        for step in (1, 2, 3)
    ]
    lines.append({"kind": "eval", "step": 3, "AP": 0.25, **named[""]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    skipped = [{"path": f"/data/{word}.jpg", "reason": word} for word in words]
    (folder / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
    text = " ".join(words)
    document = {
        "schema": 1,
        "status": status,
        "reason": text,
        "device": text,
        "images": 12,
        "skipped_steps": 1,
        "steps": 3,
        "resume": f"ssldet pretrain --resume {text}",
        "versions": {"torch": text, **dict.fromkeys(words, "1")},
        "results": {"AP": 0.25, **named[""], "per_class": named[""]},
    }
    (folder / "run.json").write_text(json.dumps(document))
    train = json.dumps([word.encode("utf-8", "backslashreplace").decode() for word in words])
    (folder / "run.toml").write_text(f"[data]\ntrain = {train}\n[task]\nname = {train}\n", encoding="utf-8")
    rows = [{"section": word, "outcome": word, "tensors": 3, "parameters": 23454} for word in words]
    (folder / "transfer.json").write_text(json.dumps({"rows": rows}))
    return folder


def _previews(folder: Path, count: int) -> Path:
    (folder / "previews").mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (64, 48), (number, 90, 0)).save(folder / "previews" / f"step-{number:06d}.png")
    return folder


def _report(folder: Path, **choices: str) -> str:
    return write_report(folder, **choices).read_text(encoding="utf-8")


def test_a_run_on_one_page(tmp_path: Path) -> None:
    text = _report(_run(tmp_path / "cards"), citation="@article{dai2021}")
    shape = Shape(text)
    for word in (
        "cards",
        "finished",
        "AP",
        "25.0",
        "Points, 0 to 100",
        "Images: 12",
        "@article{dai2021}",
        "23\u202f454",
    ):
        assert word in shape.words
    assert shape.loads == {"data:image/jpeg;base64", "data:image/svg+xml;base64"}
    assert "ssldet pretrain --resume cards" in shape.words
    for heading in ("Results", "Training", "Pictures", "Handed over", "Commands", "Recipe", "Environment", "Cite"):
        assert heading in shape.words


def test_groups_of_results_are_tables_however_deep(tmp_path: Path) -> None:
    folder = _run(tmp_path / "cards")
    document = json.loads((folder / "run.json").read_text())
    kinds = {"cup": {"PQ": 0.5125, "SQ": 0.75}, "wall": {"PQ": 0.25, "SQ": 0.6375}}
    segm = {"AP": 0.3125, "per_class": {"cup": 0.8375}}
    document["results"] = {"PQ": 0.375, "things": {"PQ": 0.4375}, "per_class": kinds, "segm": segm}
    (folder / "run.json").write_text(json.dumps(document))
    words = Shape(_report(folder)).words
    for word in ("Results: things", "Results: segm: per class", "43.8", "31.2", "83.8", "51.2", "63.7", "SQ"):
        assert word in words
    assert "{" not in words[words.index("Results: things") : words.index("Training")]


def test_hostile_words_of_a_run_change_no_tag(tmp_path: Path) -> None:
    plain = Shape(_report(_run(tmp_path / "plain", status="failed"), citation="ace"))
    text = _report(_run(tmp_path / "hostile", HOSTILE, status="failed"), citation=" ".join(HOSTILE))
    shape = Shape(text)
    assert shape.tags == plain.tags
    assert shape.loads == plain.loads
    assert not any(name.startswith("on") for _, names in shape.tags for name in names)
    assert not {"script", "iframe", "a", "link", "object", "form", "base"} & {tag for tag, _ in shape.tags}
    for blob in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text):
        drawing = Shape(base64.b64decode(blob).decode())
        assert not {"script", "image", "a", "foreignobject", "iframe"} & {tag for tag, _ in drawing.tags}


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_word_in_any_part_of_a_page_changes_no_tag(tmp_path: Path, word: str) -> None:
    def shape(text: str) -> Shape:
        section = Section(
            heading=text,
            text=f"{text}\n\n{text}",
            code=text,
            table=Table(columns=(text, text), rows=[(text, 1), (text, text)]),
            svg={text: "<svg xmlns='http://www.w3.org/2000/svg'/>"},
            pictures=[Picture(image=Image.new("RGB", (4, 4)), caption=text), Picture(image=tmp_path, caption=text)],
        )
        page = write_page(tmp_path / "page.html", text, [section], status=text, figures=[(text, text)], lead=text)
        return Shape(page.read_text(encoding="utf-8"))

    plain, hostile = shape("word"), shape(word)
    assert hostile.opened == plain.opened
    assert hostile.tags == plain.tags
    assert hostile.loads == plain.loads


def test_attributes_are_quoted_and_nothing_comes_from_outside(tmp_path: Path) -> None:
    section = Section(heading="a", text="b", table=Table(rows=[("c", 1)]), svg={"d": "<svg/>"})
    text = write_page(tmp_path / "page.html", "e", [section], figures=[("f", "1")]).read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    outside = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert "http:" not in outside
    assert "https:" not in outside
    assert "url(" not in outside
    body = outside[outside.index("<body>") :]
    assert not re.search(r"<[^>]*=[^\"\s>][^>]*>", body), "an attribute without quotes"


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    words = Shape(_report(tmp_path)).words
    assert tmp_path.name in words
    assert "No step has been logged yet." in words


@pytest.mark.parametrize("state", ["failed", "stopped", "diverged"])
def test_a_run_that_did_not_finish_says_so(tmp_path: Path, state: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": state, "reason": "loss is not finite at step 7"}))
    words = Shape(_report(tmp_path)).words
    assert state in words
    assert "loss is not finite at step 7" in words


def test_the_reason_of_an_earlier_stop_is_not_shown_for_a_finished_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "reason": "stopped by a signal"}))
    assert "stopped by a signal" not in Shape(_report(tmp_path)).words


def test_torn_and_damaged_records_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = _run(tmp_path / "torn")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n\xff\xfe\n{"kind": "train", "step": 4, "lo')
    (folder / "run.json").write_text('{"status": "compl')
    (folder / "run.toml").write_text("this is not = = toml")
    words = Shape(_report(folder)).words
    assert "a kill tore them: 3" in words
    assert "unknown" in words
    assert "step 3" in words


def test_numbers_that_are_missing_are_shown_so(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 1, "loss": NaN, "loss/class": null, "lr": 1e-4}\n'
    )
    (tmp_path / "run.json").write_text('{"results": {"AP": null, "AP50": NaN}}')
    words = Shape(_report(tmp_path)).words
    assert words.count("n/a") >= 4
    assert "nan" not in words.lower()


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run-\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system keeps only UTF-8 names")
    assert r"run-\udcff" in Shape(_report(folder)).words


def test_a_page_tells_neither_place_nor_camera(tmp_path: Path) -> None:
    folder = _run(tmp_path / "cards", [" /home/anna/secret/cards/a.jpg"])
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010E] = "52.5 north"
    Image.new("RGB", (64, 48)).save(folder / "previews" / "step-000009.png", exif=exif)
    text = _report(folder, citation=f"made in {folder}")
    assert "anna" not in text
    assert str(tmp_path) not in text
    blobs = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(blobs) == 3
    for blob in blobs:
        data = base64.b64decode(blob)
        assert b"52.5 north" not in data
        assert b"Exif" not in data
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert image.size == (64, 48)


def test_pictures_are_few_and_small(tmp_path: Path) -> None:
    large = Image.new("RGB", (2800, 700), (9, 99, 9))
    page = write_page(
        tmp_path / "page.html",
        "Many",
        [Section(heading="All", pictures=[Picture(image=large, caption=f"number {n}") for n in range(30)])],
    )
    text = page.read_text(encoding="utf-8")
    blobs = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(blobs) == 24
    assert "6 more pictures are not shown here." in text
    with Image.open(io.BytesIO(base64.b64decode(blobs[0]))) as image:
        assert image.size == (1400, 350)


def test_the_first_and_the_newest_previews_are_shown(tmp_path: Path) -> None:
    words = Shape(_report(_previews(tmp_path / "long", 9))).words
    assert re.findall(r"step 00000\d", words) == [f"step 00000{n}" for n in (0, 4, 5, 6, 7, 8)]
    assert "3 more are in the folder previews." in words


def _too_large(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a picture"),
        lambda path: path.write_bytes(path.read_bytes()[:80]),
        _too_large,
    ],
)
def test_a_picture_that_cannot_be_shown_keeps_its_caption(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    folder = _previews(tmp_path / "cards", 2)
    spoil(folder / "previews" / "step-000001.png")
    text = _report(folder)
    assert "step 000001 (the picture can't be read)" in text
    assert len(re.findall("data:image/jpeg", text)) == 1


def test_skipped_files_are_counted_once_by_reason(tmp_path: Path) -> None:
    lines = [{"path": f"/data/x/{n % 5}.jpg", "reason": "truncated"} for n in range(20)]
    lines.append({"path": "/data/x/b.png", "reason": "too-large"})
    (tmp_path / "quarantine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = _report(tmp_path)
    assert "Files skipped: 6." in text
    row = re.search(r"<tr><td[^>]*>truncated</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td>", text)
    assert row is not None
    assert row.groups() == ("5", "0.jpg, 1.jpg, 2.jpg")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = _run(tmp_path / "cards")
    assert _report(folder) == _report(folder)
    assert sorted(path.name for path in folder.iterdir() if "report" in path.name) == ["report.html"]


def test_a_failure_leaves_the_old_page_whole(tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", "Old", [])
    old = page.read_bytes()
    with pytest.raises(TypeError):
        write_page(tmp_path / "page.html", "New", [Section(heading="x", pictures=[Picture(image=3, caption="")])])  # type: ignore[arg-type]
    assert page.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_any_sections_in_order(tmp_path: Path) -> None:
    sections = [
        Section(heading="Second", text="One.\n\nTwo."),
        Section(heading="Third", code="a = 1\nb = 2", table=Table(columns=("who", "AP"), rows=[("scratch", 0.123456)])),
        Section(
            heading="Fourth",
            table=Table(rows=[("seeds", 5)]),
            svg={"curve": "<svg xmlns='http://www.w3.org/2000/svg'/>"},
        ),
    ]
    page = write_page(tmp_path / "p.html", "First", sections, status="stopped", figures=[("AP", "0.5")], lead="Why.")
    shape = Shape(page.read_text(encoding="utf-8"))
    words = [
        "First",
        "stopped",
        "Why.",
        "AP",
        "0.5",
        "Second",
        "One.",
        "Two.",
        "Third",
        "a = 1\nb = 2",
        "0.1235",
        "Fourth",
    ]
    places = [shape.words.index(word) for word in words[5:]]
    assert places == sorted(places)
    assert all(word in shape.words for word in words)
    assert shape.opened.count("p") == 3
    assert shape.opened.count("figure") == 1
