"""What a step costs: measured by one thing at a time, and shown with straight lines."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.report.costs import COST_AXES, drawing_of_costs, line_through, points_of, table_of_costs
from benchmarks.timing import costs
from benchmarks.timing.apart import Row

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "costs.json"


def test_a_straight_line_does_not_bend_and_a_step_does() -> None:
    straight = line_through([(1, 3), (2, 5), (4, 9)])
    assert (straight.start, straight.slope, straight.bend) == pytest.approx((1, 2, 0))
    assert line_through([(1, 1), (2, 1), (3, 4)]).bend == pytest.approx(1.0)


def test_all_axes_are_measured_and_the_base_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def apart(_: object, given: costs.Point, until: float) -> Any:
        asked.append(tuple(given.sizes.values()))
        yield {"seconds": given.sizes["batch"] / 2, "bytes": 10**6 * given.sizes["batch"]}

    monkeypatch.setattr(costs, "rows_apart", apart)
    rows = list(costs.measure_costs(tmp_path / "costs.json", tmp_path, 1))
    assert len(rows) == sum(map(len, costs.AXES.values()))
    assert len(asked) == len(set(asked)) == len(rows) - (len(costs.AXES) - 1)
    document = json.loads((tmp_path / "costs.json").read_text())
    assert points_of(document, "batch", "bytes") == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert points_of(document, "side", "seconds")[0] == (16.384, 1.0)
    assert "| images of a batch | 1 to 8 | 500 ms | 0% | 1 MB | 0% |" in table_of_costs(tmp_path)
    ElementTree.fromstring(drawing_of_costs(document))


def test_a_point_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: object) -> Any:
        row: Row = {"failed": "was not done in its time, and killed"}
        yield row

    monkeypatch.setattr(costs, "rows_apart", apart)
    with pytest.raises(costs.SetupError, match="batch 1 could not be measured: was not done"):
        list(costs.measure_costs(tmp_path / "costs.json", tmp_path, 1))


def test_what_is_committed_holds_every_axis() -> None:
    document = json.loads(COMMITTED.read_text())
    for axis in COST_AXES:
        assert [row["value"] for row in document["results"] if row["axis"] == axis] == list(costs.AXES[axis])
