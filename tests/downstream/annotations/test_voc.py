"""Every known way in which a VOC folder goes wrong: refused with its place and advice, or put right and counted."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from downstream.annotations.labelled import LabelledImages
from downstream.annotations.voc import CLASSES, open_voc, read_voc
from ssldet.data.images import ImageRules
from ssldet.errors import AnnotationError

OBJECT = """<object>
<name>{name}</name>
<difficult>{difficult}</difficult>
<bndbox>
<xmin>{xmin}</xmin>
<ymin>{ymin}</ymin>
<xmax>{xmax}</xmax>
<ymax>{ymax}</ymax>
</bndbox>
</object>
"""
FIELDS = {"name": "dog", "difficult": 0, "xmin": 11, "ymin": 5, "xmax": 30, "ymax": 34}
SIZE = "<size>\n<width>60</width>\n<height>40</height>\n</size>\n"


def thing(**changes: object) -> str:
    return OBJECT.format(**(FIELDS | changes))


def xml(*objects: str, size: str = SIZE) -> str:
    return f"<annotation>\n{size}{''.join(objects)}</annotation>\n"


def write(folder: Path, **texts: str) -> Path:
    """Write images `a` and `b` of 60 x 40 pixels, `b` without objects unless told otherwise."""
    texts = {"a": xml(thing()), "b": xml()} | texts
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for stem, text in texts.items():
        Image.new("RGB", (60, 40), (10, 90, 30)).save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(texts) + "\n")
    return folder


def opened(rest: object) -> LabelledImages:
    return open_voc(str(rest), ImageRules(min_side=17, max_pixels=10**6))


def test_a_clean_folder_opens(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "voc"))
    assert source.classes == tuple(CLASSES.split())
    assert source.image_ids == ("a", "b")
    sample = source[0]
    assert sample.key == "a"
    assert sample.original_size == (40, 60)
    # Pixels 11 to 30, counted from 1 and both included, are the twenty columns from 10 up to 30.
    assert sample.targets.boxes.tolist()[0] == pytest.approx([20 / 60, 19 / 40, 20 / 60, 30 / 40])
    assert sample.targets.labels.tolist() == [CLASSES.split().index("dog")]
    assert len(source[1].targets) == 0
    assert source.ground_truth()["annotations"][0]["bbox"] == [10, 4, 20, 30]


REFUSED: dict[str, tuple[str, str, str]] = {
    "objects in a list": (
        xml(f"<objects>\n{thing()}</objects>"),
        "a.xml:7: <object> below <objects>",
        "directly below",
    ),
    "in capitals": (
        xml(thing().replace("object>", "Object>"), thing()),
        "a.xml:6: <Object>",
        "is spelled <object>",
    ),
    "nan": (xml(thing(xmin="nan")), "Annotations/a.xml:9: <xmin> 'nan'", "finite"),
    "infinite": (xml(thing(xmax="1e999")), "Annotations/a.xml:9: <xmax> '1e999'", "finite"),
    "text": (xml(thing(ymax="wide")), "Annotations/a.xml:9: <ymax> 'wide'", "finite"),
    "negative width": (xml(thing(xmax=3)), "Annotations/a.xml:9: <bndbox> (11, 5, 3, 34)", "width and height"),
    "no corner": (
        xml(thing().replace("<ymax>34</ymax>", "")),
        "Annotations/a.xml:9: <bndbox> without <ymax>",
        "pixels",
    ),
    "no box": (xml("<object>\n<name>dog</name>\n</object>"), "Annotations/a.xml:6: <object> without <bndbox>", "xmin"),
    "no name": (xml(thing(name="")), "Annotations/a.xml:6: <object> without <name>", "class"),
    "odd flag": (xml(thing(difficult="maybe")), "Annotations/a.xml:6: <difficult> 'maybe'", "0 or 1"),
    "wrong root": ("<html>\n</html>", "Annotations/a.xml:1: <html>", "<annotation>"),
    "cut": (xml(thing())[:-30], "Annotations/a.xml: line", "not XML"),
    "empty": ("", "Annotations/a.xml: line 1", "not XML"),
    "size of text": (xml(size=SIZE.replace("60", "sixty")), "Annotations/a.xml:2: <size>", "leave it out"),
    "wrong size": (xml(size=SIZE.replace("60", "61")), "Annotations/a.xml: states 40 x 61", "original files"),
    "turned size": (
        xml(size="<size><width>40</width><height>60</height></size>"),
        "Annotations/a.xml: states 60 x 40",
        "EXIF",
    ),
    "laughs": (
        '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + xml(thing(name="&b;")),
        "Annotations/a.xml: holds a document type",
        "repair it",
    ),
    "quadratic": (
        f'<!DOCTYPE x [<!ENTITY a "{"h" * 10_000}">]>' + xml(thing(name="&a;" * 500)),
        "Annotations/a.xml: holds a document type",
        "repair it",
    ),
    "external entity": (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + xml(thing(name="&a;")),
        "Annotations/a.xml: holds a document type",
        "repair it",
    ),
    "external type": ('<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">' + xml(), "Annotations/a.xml: holds", "repair it"),
    "deep": ("<annotation>" + "<a>" * 20_000 + "</a>" * 20_000 + "</annotation>", "Annotations/a.xml: line 1", "deep"),
    "other encoding": ('<?xml version="1.0" encoding="klingon"?>' + xml(), "Annotations/a.xml: ", "klingon"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_refused(tmp_path: Path, name: str) -> None:
    text, place, advice = REFUSED[name]
    folder = write(tmp_path / "voc", a=text)
    with pytest.raises(AnnotationError) as caught:
        opened(folder)
    assert place in str(caught.value)
    assert advice in str(caught.value)
    assert caught.value.exit_code == 3


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc", a=xml(thing(xmin="nan"), thing(name="")), b=xml(thing(xmax=3)))
    with pytest.raises(AnnotationError, match="3 problems") as caught:
        opened(folder)
    for place in ("a.xml:9", "a.xml:16", "b.xml:9"):
        assert place in str(caught.value)


@pytest.mark.parametrize(
    ("text", "note", "left"),
    [
        (xml(thing(xmin=31, xmax=30)), "boxes without area dropped", 0),
        (xml(thing(xmin=61, xmax=70)), "boxes wholly outside their image dropped", 0),
        (xml(thing(xmax="1e9")), "boxes cut at the border", 1),
        (xml(thing(difficult=1)), "difficult objects, trained on and ignored by metrics", 1),
        (xml(thing(xmin=0)), "boxes that begin before pixel 1, where VOC begins", 1),
    ],
    ids=["no area", "outside", "cut", "difficult", "from zero"],
)
def test_a_small_fault_is_mended_and_counted(
    tmp_path: Path, text: str, note: str, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = opened(write(tmp_path / "voc", a=text))
    assert source.labels.notes == {note: 1}
    assert f"1 {note}" in caplog.text
    assert len(source[0].targets) == left == len(source.ground_truth()["annotations"])


def test_coordinates_may_have_fractions_and_flags_may_be_absent(tmp_path: Path) -> None:
    text = xml(thing(xmin="11.5", xmax="30.5").replace("<difficult>0</difficult>", ""))
    source = opened(write(tmp_path / "voc", a=text))
    assert source.ground_truth()["annotations"][0]["bbox"] == [10.5, 4, 20, 30]
    assert not source.labels.difficult.any()


def test_sizes_may_be_left_out(tmp_path: Path) -> None:
    zeros = SIZE.replace("60", "0").replace("40", "0")
    source = opened(write(tmp_path / "voc", a=xml(thing(), size=""), b=xml(size=zeros)))
    assert source.labels.sizes.tolist() == [[40, 60], [40, 60]]


def test_parts_of_an_object_are_not_its_box(tmp_path: Path) -> None:
    part = "<part>\n<name>head</name>\n<bndbox><xmin>1</xmin></bndbox>\n</part>"
    source = opened(write(tmp_path / "voc", a=xml(thing(name="person").replace("<bndbox>", part + "<bndbox>"))))
    assert source.ground_truth()["annotations"][0]["bbox"] == [10, 4, 20, 30]


def test_all_splits_of_a_folder_number_the_classes_alike(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc", a=xml(thing(name="zebra")), b=xml(thing(name="ant")))
    (folder / "ImageSets/Main/val.txt").write_text("a\n")
    val = opened(f"{folder}:val")
    assert val.classes == opened(folder).classes == ("ant", "zebra")
    assert val[0].targets.labels.tolist() == [1]
    assert val.category_ids == (1, 2)


def test_splits_are_joined_and_images_listed_twice_in_them_count_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/val.txt").write_text("b\n")
    assert opened(f"{folder}:val+trainval").image_ids == ("b", "a")


def test_the_classes_that_the_user_lists_come_in_that_order(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc", a=xml(thing(name="zebra")), b=xml(thing(name="ant")))
    (folder / "classes.txt").write_text("zebra\nbee\n\nant\n")
    source = opened(folder)
    assert source.classes == ("zebra", "bee", "ant")
    assert [source[number].targets.labels.tolist() for number in (0, 1)] == [[0], [2]]


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ("dog\ncat\ndgo\ncat\n", r"classes\.txt:4: cat stands in line 2 too"),
        ("gdo\ncat\n", r"Annotations/a\.xml:6: <name> 'dog'; is not in classes\.txt.*did you mean 'gdo'"),
        ("\n", r"classes\.txt: no class; list one class a line"),
    ],
)
def test_a_faulty_list_of_classes_is_refused(tmp_path: Path, listed: str, says: str) -> None:
    folder = write(tmp_path / "voc")
    (folder / "classes.txt").write_text(listed)
    with pytest.raises(AnnotationError, match=says):
        opened(folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_understood(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/trainval.txt").write_text("a\r\nb\r\n", encoding=encoding)
    if encoding != "utf-32":
        text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>{xml(thing())}'
        (folder / "Annotations/a.xml").write_text(text, encoding=encoding)
    source = opened(folder)
    assert source.image_ids == ("a", "b")
    assert len(source[0].targets) == 1


def test_a_split_that_is_no_text_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/trainval.txt").write_bytes(b"a\n\xe9\n")
    with pytest.raises(AnnotationError, match=r"trainval\.txt: not utf-8 text at byte 2"):
        opened(folder)


@pytest.mark.parametrize("line", ["../../../../x", "/etc/passwd", "..", "a/../../b"])
def test_a_split_stays_in_its_folder(tmp_path: Path, line: str) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/trainval.txt").write_text(f"a\n{line}\n")
    with pytest.raises(AnnotationError, match=r"trainval\.txt:2: .*below JPEGImages"):
        opened(folder)


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/trainval.txt").write_text("a\nb\n\na\n")
    with pytest.raises(AnnotationError, match=r"trainval\.txt:4: a is listed twice"):
        opened(folder)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "ImageSets/Main/trainval.txt").write_text("\n")
    with pytest.raises(AnnotationError, match="empty"):
        opened(folder)


def test_an_unknown_split_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="did you mean 'trainval'"):
        opened(f"{write(tmp_path / 'voc')}:trainvla")


def test_the_folder_above_is_answered_with_the_one_below(tmp_path: Path) -> None:
    write(tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(AnnotationError, match=r"did you mean voc:.*VOC2007"):
        opened(tmp_path / "VOCdevkit")


def test_a_missing_image_and_a_missing_file_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "JPEGImages/b.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"Annotations/b\.xml: .*b\.jpg is missing; restore"):
        opened(folder)
    assert len(read_voc(str(folder))) == 2, "labels alone need no images"
    (folder / "Annotations/b.xml").unlink()
    with pytest.raises(AnnotationError, match=r"trainval\.txt:2: 'b' has no XML file"):
        opened(folder)


def test_a_damaged_image_is_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "JPEGImages/a.jpg").write_bytes(b"")
    source = opened(folder)
    assert source.image_ids == ("b",)
    assert [entry.reason for entry in source.skipped] == ["empty"]


def test_a_set_without_one_usable_image_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    for stem in "ab":
        (folder / f"JPEGImages/{stem}.jpg").write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"none of 2 images can be used \(empty\)"):
        opened(folder)


def test_images_may_have_other_formats(tmp_path: Path) -> None:
    folder = write(tmp_path / "voc")
    (folder / "JPEGImages/a.jpg").unlink()
    Image.new("RGB", (60, 40)).save(folder / "JPEGImages/a.PNG")
    assert opened(folder)[0].original_size == (40, 60)


def test_a_real_set_opens_with_the_counts_of_its_readme(real_data: Path) -> None:
    assert (len(read_voc(f"{real_data / 'cards_voc'}:val").boxes)) == 143
    source = opened(real_data / "cards_voc")
    assert source.classes == ("ace", "jack", "king", "nine", "queen", "ten")
    assert (len(source), len(source.labels.boxes), source.skipped) == (363, 670, ())
    counts = dict(zip(source.classes, (source.labels.labels == label for label in range(6)), strict=True))
    assert {name: int(found.sum()) for name, found in counts.items()} == {
        "ace": 118, "king": 118, "queen": 106, "nine": 115, "ten": 100, "jack": 113
    }  # fmt: skip
    sample = source[5]
    assert sample.original_size == tuple(sample.image.shape[1:])


def test_unspecified_difficulty_is_none_and_counted(tmp_path: Path) -> None:
    objects = [thing(difficult=word, xmin=left) for word, left in (("Unspecified", 2), ("True", 3), ("False", 4))]
    labels = read_voc(str(write(tmp_path / "voc", a=xml(*objects))))
    assert labels.difficult.tolist() == [False, True, False]
    assert labels.notes["objects whose <difficult> is Unspecified, taken as not difficult"] == 1


@pytest.mark.parametrize("name", ["a.tif", "a.BMP", "a.Jpg", "a.gif", "a.TIFF", "a.jfif"])
def test_every_decodable_ending_is_found_in_any_case(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "voc", a=xml(f"<filename>a.jpg</filename>{thing()}"))
    (root / "JPEGImages/a.jpg").unlink()
    form = {"jpg": "JPEG", "jfif": "JPEG", "tif": "TIFF"}.get(name[2:].lower(), name[2:].upper())
    Image.new("RGB", (60, 40)).save(root / "JPEGImages" / name, form)
    assert opened(root).path_of(0).name == name


def test_the_stated_file_name_decides(tmp_path: Path) -> None:
    root = write(tmp_path / "voc")
    Image.new("RGB", (60, 40)).save(root / "JPEGImages/a.png")
    with pytest.raises(AnnotationError, match=r"Annotations/a\.xml: 'a\.jpg' and 'a\.png'; .*<filename>"):
        opened(root)
    (root / "Annotations/a.xml").write_text(xml("<filename>C:\\pictures\\a.png</filename>", thing()))
    assert opened(root).path_of(0).name == "a.png"
    (root / "JPEGImages/b.jpg").rename(root / "JPEGImages/other.jpg")
    (root / "Annotations/b.xml").write_text(xml("<filename>other.jpg</filename>"))
    assert opened(root).path_of(1).name == "other.jpg"


def test_the_image_of_the_same_name_goes_before_another_that_an_edited_copy_still_states(tmp_path: Path) -> None:
    root = write(tmp_path / "voc", a=xml("<filename>b.jpg</filename>", thing()))
    assert opened(root).path_of(0).name == "a.jpg"


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_folders_below_are_kept_in_the_keys(tmp_path: Path, separator: str) -> None:
    root = write(tmp_path / "voc")
    for name in ("Annotations", "JPEGImages"):
        (root / name / "cam").mkdir()
        for path in sorted((root / name).glob("a.*")):
            path.rename(path.parent / "cam" / path.name)
    (root / "ImageSets/Main/trainval.txt").write_text(f"cam{separator}a\nb\n")
    source = opened(root)
    assert source.keys == ("cam/a", "b")
    assert source.path_of(0) == root / "JPEGImages/cam/a.jpg"
    assert len(source[0].targets) == 1


def flat(folder: Path) -> Path:
    """XML files beside images of 60 x 40 pixels in two folders, and one image without an XML file."""
    for split, names in {"train": "ab", "valid": "c"}.items():
        (folder / split).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (60, 40)).save(folder / split / f"{name}.jpg")
            (folder / split / f"{name}.xml").write_text(xml(thing(name="cup" if name == "a" else "pen")))
    Image.new("RGB", (60, 40)).save(folder / "train/bare.png")
    return folder


def test_xml_beside_images_is_read(tmp_path: Path) -> None:
    root = flat(tmp_path / "set")
    source = opened(f"{root}:train")
    assert source.keys == ("a", "b")
    assert source.labels.notes["images without an XML file, not read"] == 1
    assert opened(root / "train").keys == source.keys
    assert opened(f"{root}:valid").classes == source.classes == ("cup", "pen")
    with pytest.raises(AnnotationError, match=r"beside images in train, valid; give voc:.*set:train"):
        opened(root)
    with pytest.raises(AnnotationError, match=r"no XML files in vaild; .*did you mean 'valid'"):
        opened(f"{root}:vaild")


def test_without_lists_every_xml_file_counts(tmp_path: Path) -> None:
    root = write(tmp_path / "voc")
    (root / "ImageSets/Main/trainval.txt").unlink()
    (root / "ImageSets/Main").rmdir()
    assert opened(root).keys == ("a", "b")
    with pytest.raises(AnnotationError, match=r"no ImageSets/Main in it, hence no split 'val'; give voc:"):
        opened(f"{root}:val")


@pytest.mark.parametrize("listed", [True, False])
def test_xml_files_are_found_whatever_the_case_of_their_ending(tmp_path: Path, listed: bool) -> None:
    root = write(tmp_path / "voc")
    (root / "Annotations/a.xml").rename(root / "Annotations/a.XML")
    if not listed:
        (root / "ImageSets/Main/trainval.txt").unlink()
        (root / "ImageSets/Main").rmdir()
    assert len(opened(root)[0].targets) == 1


def test_names_in_lists_without_xml_file_are_told_with_their_line_and_what_was_meant(tmp_path: Path) -> None:
    root = write(tmp_path / "voc")
    (root / "ImageSets/Main/trainval.txt").write_text("a.jpg\nb  -1\nJPEGImages/b.jpg\nnothing-like-it\n")
    with pytest.raises(AnnotationError) as caught:
        opened(root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for line, name, meant in ((1, "a.jpg", "a"), (2, "b  -1", "b"), (3, "JPEGImages/b.jpg", "b")):
        assert f"ImageSets/Main/trainval.txt:{line}: '{name}' has no XML file (did you mean '{meant}'?);" in lines[line]


def test_images_without_annotations_and_names_that_contradict_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "voc", a=xml(thing()).replace("<size>", "<filename>b.jpg</filename><size>"))
    (root / "ImageSets/Main/trainval.txt").unlink()
    (root / "ImageSets/Main").rmdir()
    (root / "Annotations/b.xml").unlink()
    notes = opened(root).labels.notes
    assert notes["images without an XML file, not read"] == 1
    assert notes["XML files state another image of the folder than that of their name, which was read"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.xml: line 1: not XML (the file is empty)"),
        (xml(thing(name="K\xe4fer")).encode("latin-1"), "not UTF-8, and names no other encoding; save it as UTF-8"),
        (b'<?xml version="1.0" encoding="gbk"?>' + xml().encode(), "save it as UTF-8"),
    ],
)
def test_text_that_is_none_says_what_helps(tmp_path: Path, content: bytes, said: str) -> None:
    root = write(tmp_path / "voc")
    (root / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(AnnotationError) as caught:
        opened(root)
    assert said in str(caught.value)
