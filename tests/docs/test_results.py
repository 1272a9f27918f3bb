"""Reports of suites in the documentation say what the committed results say."""

from pathlib import Path

import pytest

from benchmarks.report import drawings
from benchmarks.report.contents import contents
from benchmarks.report.text import to_markdown
from benchmarks.results import read_results

ROOT = Path(__file__).parents[2]
FOLDERS = sorted((ROOT / "docs" / "results").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_says_what_the_results_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "seed_curves", lambda *_: "drawn")
    results = read_results(ROOT / "benchmarks" / "results" / f"{folder.name}.json")
    parts = contents(results)
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert to_markdown(results, parts) == written, "run: python -m benchmarks tables"
    names = {f"{part.file_of(title)}.svg" for part in parts for title in part.drawings}
    assert {path.name for path in (folder / "figures").iterdir()} == names
