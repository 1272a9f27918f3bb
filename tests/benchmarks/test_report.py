"""One small comparison, run for real inside this process, in every form of its report."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.comparing import FinishedComparison
from benchmarks.published import TABLES
from benchmarks.results import read_results
from ssldet.errors import ConfigError
from tests.benchmarks.conftest import InProcess


@pytest.mark.slow
def test_a_comparison_is_told_in_every_form(
    carried_out: tuple[Path, FinishedComparison, InProcess], tmp_path: Path
) -> None:
    out, compared, _ = carried_out
    folder, results = compared.report, compared.results
    assert results.complete
    assert [row.status for row in results.rows].count("finished") == 4

    text = (folder / "report.md").read_text(encoding="utf-8")
    assert str(out) not in text
    assert "backbone could not be run: left out of this test" in text
    assert "dai2021updetr" in text
    figures = sorted((folder / "figures").glob("*.svg"))
    assert {path.stem for path in figures} >= {"scenes-against-epochs", "scenes-against-compute", "loss-of-pretraining"}
    for path in figures:
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert f"(figures/{path.name})" in text

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "What was detected" in page
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["status"] for row in rows].count("missing") == 2
    measured = {row["method"] + row["seed"]: float(row["AP"]) for row in rows if row["status"] == "finished"}
    assert measured == {row.arm.method + str(row.arm.seed): row.results["AP"] for row in results.measured()}
    assert (folder / "results.tex").read_text().count(r"\\") == 1 + 2

    # All of it follows from the one document, wherever that is taken.
    before = (folder / "report.md").read_text(encoding="utf-8")
    assert str(out) not in (folder / "results.json").read_text()
    again = read_results(folder)
    assert json.loads(json.dumps(again.to_json())) == json.loads((folder / "results.json").read_text())
    (tmp_path / "again" / "figures").mkdir(parents=True)
    for name in ("of-an-earlier-report.svg", "of-somebody-else.svg"):
        (tmp_path / "again" / "figures" / name).touch()
    (tmp_path / "again" / "report.md").write_text("![loss](figures/of-an-earlier-report.svg)", encoding="utf-8")
    main(["report", str(folder / "results.json"), "--out", str(tmp_path / "again")])
    left = {path.name for path in (tmp_path / "again" / "figures").iterdir()}
    assert left == {path.name for path in figures} | {"of-somebody-else.svg"}
    assert (tmp_path / "again" / "report.md").read_text(encoding="utf-8") == before


def test_published_tables_are_whole() -> None:
    for table in TABLES.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())
    assert TABLES["table5"].figure("(b)", "AP50") == 78.7
    assert TABLES["table5"].figure("(b)", "AP") is None
    assert TABLES["table3"].figure("UP-DETR", "AP50_unseen") == 73.1


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results here"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not the results of a comparison"):
        read_results(tmp_path)


def test_the_command_line_tells_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, told in (
        (["compare", "smokee"], "did you mean 'smoke'?"),
        (["compare", "smoke", "--budget", "long"], "'long' is not a time"),
        (["compare", "own_data", "--data", "photos"], "'photos' is not NAME=SPECIFICATION"),
        (["compare", "smoke", "--filter", "nothing*"], "fits no arm"),
        (["compare", "smoke", "--jobs", "0"], "--jobs: 0"),
        (["compare", "smoke", "--seeds", "0"], "--seeds: 0"),
        (["compare", "smoke", "--data", "labeled=coco:a.json"], "--data labeled=…: no suite asks for it (did you mean"),
        (["report", str(tmp_path / "absent" / "results.json")], "no results here"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--out", str(tmp_path / "out")] if words[0] == "compare" else words)
        assert caught.value.code == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    main(["list"])
    assert "paper/table1" in capsys.readouterr().out
