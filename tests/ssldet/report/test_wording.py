from pathlib import Path

import pytest

from ssldet.report.wording import MISSING, duration, measured, number, one_line, printable, without_places


def test_every_character_shows_itself() -> None:
    assert printable("naïve ☃ 猫\n\tx") == "naïve ☃ 猫\n\tx"
    assert printable("a\x1b[31mb\x00\u202ec\udcff") == r"a\x1b[31mb\x00\u202ec\udcff"
    printable("\udcff\ud800").encode()


def test_one_line_is_one_short_line() -> None:
    assert one_line("a\nb\tc") == r"a\nb\tc"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"
    assert one_line("x" * 10, 10) == "x" * 10


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/mnt/data/anna/cards/a.jpg", "…/cards/a.jpg"),
        ("coco:/srv/x/ann.json:/srv/x/images done", "coco:…/x/ann.json:…/x/images done"),
        ('train = ["/home/bob/a/b", "/x/y"]', 'train = ["…/a/b", "…/y"]'),
        (r"C:\Users\Anna\cards\a.jpg", "…/cards/a.jpg"),
        ("see https://arxiv.org/abs/2011.09094 and runs/a/b", "see https://arxiv.org/abs/2011.09094 and runs/a/b"),
        ("3/4 and/or loss/box </b> /data", "3/4 and/or loss/box </b> /data"),
        (r"\alpha\beta\gamma", r"\alpha\beta\gamma"),
    ],
)
def test_absolute_paths_lose_their_beginning(text: str, shown: str) -> None:
    assert without_places(text) == shown


def test_home_is_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))
    assert without_places("in /home/anna/pictures/a/b.jpg") == "in ~/pictures/a/b.jpg"
    assert without_places("/home/annabel/pictures/b.jpg") == "…/pictures/b.jpg"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.66666, "0.6667"),
        (1.0, "1.000"),
        (-12.345, "-12.35"),
        (1234.5, "1234"),
        (3.2e-5, "3.2e-05"),
        (123456.7, "1.23e+05"),
        (0.0, "0"),
        (23454912, "23\u202f454\u202f912"),
        (float("nan"), MISSING),
        (float("-inf"), MISSING),
        (None, MISSING),
        (True, MISSING),
        ("1", MISSING),
    ],
)
def test_numbers(value: object, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (45.2, "45 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
        (-1, MISSING),
        (float("nan"), MISSING),
        (None, MISSING),
    ],
)
def test_durations(seconds: object, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("AP", 0.2061, "20.6"),
        ("APl", -1.0, "\N{EN DASH}"),
        ("mask_AP50", 1.0, "100.0"),
        ("voc07_ap", 0.5, "50.0"),
        ("AR100", None, "n/a"),
        ("patch_iou", 0.476, 0.476),
        ("APPLE", -1.0, -1.0),
    ],
)
def test_precision_is_shown_in_points_and_what_is_absent_by_a_dash(name: str, value: object, shown: object) -> None:
    assert measured(name, value) == shown
