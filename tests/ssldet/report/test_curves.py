import math
import re
from xml.etree import ElementTree

import pytest

from ssldet.report.curves import MOST_POINTS, curves, learning_curves, panels_of_lines, seed_curves

SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _lines(svg: str) -> list[str]:
    """The path data of the lines that were drawn; grid, ticks and legend left out."""
    paths = [
        path.get("d", "")
        for axes in ElementTree.fromstring(svg).iter(f"{SVG}g")
        if axes.get("id") == "axes_1"
        for group in axes.iter(f"{SVG}g")
        if re.fullmatch(r"line2d_\d+", group.get("id", ""))
        for path in group.findall(f"{SVG}path")
        if re.search(r"stroke: #(0072b2|d55e00|009e73)", path.get("style", ""))
    ]
    return [path for path in paths if path.count("L") > 1]


def test_a_drawing_names_what_it_shows() -> None:
    svg = curves({"pretrained": [(0, 0.1), (1, 0.2), (2, 0.4)], "scratch": [(0, 0.0), (2, 0.1)]}, "Title", "AP")
    assert {"Title", "AP", "step", "pretrained", "scratch"} <= set(_texts(svg))


def test_the_same_numbers_give_the_same_text() -> None:
    def draw() -> str:
        return curves({"a": [(x, math.sin(x)) for x in range(50)], "b": [(1, 2)]}, "Title", "y")

    assert draw() == draw()


def test_a_drawing_stands_alone_and_is_undated() -> None:
    svg = curves({"a": [(0, 1), (1, 2)]}, "Title", "y")
    assert svg.startswith("<svg")
    assert "<metadata" not in svg
    assert "<!DOCTYPE" not in svg
    assert set(re.findall(r"https?://[^\"' ]+", svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    links = [value for node in ElementTree.fromstring(svg).iter() for key, value in node.items() if "href" in key]
    assert all(link.startswith("#") for link in links)


def test_values_that_are_not_finite_are_left_out_and_said_so() -> None:
    nan = float("nan")
    with_gaps = curves({"a": [(0, 1), (1, nan), (2, 3), (3, 2), (4, math.inf)]}, "Title", "y")
    without = curves({"a": [(0, 1), (2, 3), (3, 2)]}, "Title", "y")
    assert any(text.endswith("left out: 2") for text in _texts(with_gaps))
    assert not any("left out" in text for text in _texts(without))
    assert len(_lines(with_gaps)) == 1
    assert "nan" not in with_gaps.lower()


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0.0, float("nan"))], "b": []}])
def test_nothing_to_draw_is_said_so(series: dict[str, list[tuple[float, float]]]) -> None:
    assert "no finite values" in _texts(curves(series, "Title", "y"))


@pytest.mark.parametrize(
    "name", ["$\\frac{1}{2}$ $", "_hidden", "</text><script>alert(1)</script>", "a&b \"'", "\udcff\x00"]
)
def test_names_are_text_and_never_formulas_or_tags(name: str) -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    svg = curves({name: points, "other": points}, f"T {name}", f"y {name}")
    plain = curves({"plain": points, "other": points}, "T plain", "y plain")
    tags = [node.tag for node in ElementTree.fromstring(svg).iter()]
    assert set(tags) == {node.tag for node in ElementTree.fromstring(plain).iter()}
    shown = name.replace("\udcff", r"\udcff").replace("\x00", r"\x00")
    assert {shown, f"T {shown}", f"y {shown}"} <= set(_texts(svg))


def test_long_series_are_averaged_but_keep_their_shape() -> None:
    long = curves({"a": [(x, x % 2) for x in range(5 * MOST_POINTS)]}, "Title", "y")
    assert len(long) < 60_000
    assert _lines(long), "the line is there"


def test_seeds_are_thin_and_their_mean_is_thick() -> None:
    runs = [[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)]]
    svg = seed_curves({"pretrained": runs, "scratch": runs[:1]}, "Title", "AP")
    widths = re.findall(r"stroke: #0072b2; (?:stroke-opacity: [\d.]+; )?stroke-width: ([\d.]+)", svg)
    assert widths.count("0.7") == 2
    assert "2.2" in widths
    assert len(_lines(svg)) == 4


def test_the_mean_covers_only_steps_that_all_seeds_reached() -> None:
    full = [(float(x), 1.0) for x in range(5)]
    alone = curves({"a": full[:3]}, "Title", "y")
    both = seed_curves({"a": [full, full[:3]]}, "Title", "y")
    assert len(_lines(both)) == 3
    assert min(path.count("L") for path in _lines(both)) == min(path.count("L") for path in _lines(alone)) == 2


def test_learning_curves_sort_the_numbers_of_a_run() -> None:
    records = [
        {
            "kind": "train",
            "step": 1,
            "loss": 3.0,
            "loss/class": 1.0,
            "loss/box_l1": 2.0,
            "metric/patch_iou": 0.1,
            "lr": 1.0,
        },
        {"kind": "train", "step": 2, "loss": None, "loss/class": 0.5, "lr": 1.0, "seconds": 3.0, "grad_norm": 1.0},
        {"kind": "train", "step": 3, "loss": 1.0, "loss/class": 0.5, "metric/patch_iou": 0.2, "lr": 1.0},
        {"kind": "eval", "step": 2, "AP": 0.3, "AP50": 0.5, "APl": -1.0, "per_class": {"ace": 0.3}},
        {"kind": "eval", "step": 3, "AP": 0.4, "AP50": 0.6, "APl": -1.0, "per_class": {"ace": 0.3}},
        {"kind": "train", "loss": 1.0},
        {"kind": "remark", "step": 3, "loss": 1.0},
        {},
    ]
    drawings = learning_curves(records)
    assert list(drawings) == [
        "Loss", "Loss terms, last layer", "Metrics while training", "Evaluation", "Learning rate",
    ]  # fmt: skip
    assert "not finite and left out: 1" in _texts(drawings["Loss"])
    assert {"class", "box_l1"} <= set(_texts(drawings["Loss terms, last layer"]))
    assert {"AP", "AP50", "60"} <= set(_texts(drawings["Evaluation"]))
    assert "APl" not in _texts(drawings["Evaluation"])
    assert not any(text.startswith(("-", "\N{MINUS SIGN}")) for text in _texts(drawings["Evaluation"]))
    assert learning_curves(record for record in records if record.get("step") == 2) == {}
    assert "patch_iou" in _texts(drawings["Metrics while training"])
    assert learning_curves([]) == {}


def test_a_step_that_was_repeated_after_a_resume_counts_once() -> None:
    before = [{"kind": "train", "step": step, "loss": 9.0} for step in (1, 2, 3)]
    after = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    assert learning_curves(before + after) == learning_curves(after)


def test_a_readers_own_style_changes_nothing() -> None:
    import matplotlib as mpl

    plain = curves({"a": [(0, 1), (1, 2)]}, "Title", "y")
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "axes.grid": False}):
        assert curves({"a": [(0, 1), (1, 2)]}, "Title", "y") == plain
        assert mpl.rcParams["font.size"] == 30


def test_panels_of_a_row_share_an_axis_that_shows_all_of_them() -> None:
    low, high = [(1.0, 1.0), (2.0, 2.0)], [(1.0, 100.0), (2.0, 200.0)]
    drawing = panels_of_lines({"one": {"cost": (low, low)}, "other": {"cost": (high, high)}})
    assert ">200<" in drawing
