"""Tables of README and docs come from the committed results."""

import re
from pathlib import Path

import pytest

from benchmarks.report.pages import TABLES, write_tables
from ssldet.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_say_what_the_results_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert write_tables(text, RESULTS) == text, f"run: python -m benchmarks tables {page.relative_to(ROOT)}"


def test_every_table_stands_on_a_page() -> None:
    named = {name for page in PAGES for name in re.findall(r"<!-- table: ([\w-]+) -->", page.read_text("utf-8"))}
    assert named == set(TABLES)


def test_a_typed_figure_is_replaced() -> None:
    typed = "<!-- table: matching -->\n| none | 99.9 |\n<!-- end -->\nafter"
    written = write_tables(typed, RESULTS)
    assert "99.9" not in written
    assert "6.27" in written
    assert written.endswith("<!-- end -->\nafter")


def test_a_table_that_does_not_exist_is_said() -> None:
    with pytest.raises(ConfigError, match=r"'matchin' .did you mean 'matching'"):
        write_tables("<!-- table: matchin -->\n<!-- end -->", RESULTS)


def test_a_table_that_does_not_end_is_said() -> None:
    text = "<!-- table: matching -->\n| none |\nprose\n<!-- table: demo -->\n| x |\n<!-- end -->"
    with pytest.raises(ConfigError, match=r"table 'matching': no <!-- end -->"):
        write_tables(text, RESULTS)


ENGINEERING = {"formats.md", "fp_detr.md", "many_gpus.md", "many_images.md"}
"""Pages whose typed tables compare with other programs, quote papers, or tell times: no figure of pretraining."""
FIGURE = re.compile(r"\|\s*[`*]*[+\u2212-]?\d*[.,]\d+[^|]{0,20}(?=\|)")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in ENGINEERING], ids=lambda page: page.name)
def test_measured_tables_are_not_typed(page: Path) -> None:
    typed = re.sub(r"<!-- table: .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    rows = [line for line in typed.splitlines() if line.startswith("|") and "`task." not in line and "`--" not in line]
    assert not [row for row in rows if FIGURE.search(row)]
