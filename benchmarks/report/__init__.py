"""Results -> a report as one HTML file, Markdown with drawings, CSV and LaTeX."""

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from benchmarks.report.contents import Part, contents
from benchmarks.report.text import to_csv, to_latex, to_markdown
from benchmarks.results import Results
from benchmarks.statistics import PERCENT, summaries
from ssldet.regular import read_text
from ssldet.report.page import Picture, Section
from ssldet.report.page import write_page as write_html

MOST_FIGURES = 6
"""Largest number of means that stand at the top of a report."""


def write_reports(results: Results, folder: Path, *, pictures: Path | None = None) -> Path:
    """Write the report in all formats.

    Args:
        results: The results, which may be incomplete.
        folder: Existing folder to write to.
        pictures: Folder of the comparison, for images with detections; `None` leaves them out.

    Returns:
        Path of the HTML page.
    """
    parts = contents(results)
    _write_markdown(results, parts, folder)
    (folder / "results.csv").write_text(to_csv(results), encoding="utf-8")
    (folder / "results.tex").write_text(to_latex(results), encoding="utf-8")
    sections = [_section(part) for part in parts]
    if pictures is not None and (images := _pictures(results, pictures)):
        sections.insert(-3, Section(heading="What was detected", pictures=images))
    suite = results.suite
    return write_html(
        folder / "report.html",
        f"{suite['name']}, {suite['scale']}",
        sections,
        status="finished" if results.complete else "unfinished",
        figures=_key_figures(results),
        lead=suite["question"],
    )


def write_page(results: Results, folder: Path) -> None:
    """Write the report as Markdown with its drawings alone, as a page of the documentation.

    Args:
        results: The results.
        folder: Existing folder to write to.
    """
    _write_markdown(results, contents(results), folder)


def _write_markdown(results: Results, parts: Sequence[Part], folder: Path) -> None:
    before = _shown(folder / "report.md")
    (folder / "report.md").write_text(to_markdown(results, parts), encoding="utf-8")
    drawings = {f"{part.file_of(name)}.svg": svg for part in parts for name, svg in part.drawings.items()}
    _write_figures(drawings, folder / "figures", before)


def _shown(report: Path) -> set[str]:
    """Return the names of the drawings that a report in Markdown shows; none if there is no such report."""
    return set(re.findall(r"\(figures/([\w-]+\.svg)\)", read_text(report))) if report.exists() else set()


def _write_figures(figures: Mapping[str, str], folder: Path, shown: Set[str]) -> None:
    """Write the drawings of this report, and remove those that only an earlier report had, which it shows."""
    folder.mkdir(exist_ok=True)
    for name in shown - figures.keys():
        (folder / name).unlink(missing_ok=True)
    for name, svg in figures.items():
        (folder / name).write_text(svg, encoding="utf-8")


def _key_figures(results: Results) -> list[tuple[str, str]]:
    """Return the mean of each method with all labels, the largest first; how much was run where nothing is measured."""
    whole = sorted((one for one in summaries(results) if one.fraction == 1), key=lambda one: -one.mean)
    several = len(results.suite["models"]) > 1
    figures = [
        (
            f"{one.metric}, {one.downstream}, {one.method}{f', {one.model}' if several else ''}",
            f"{PERCENT * one.mean:.1f}",
        )
        for one in whole
    ]
    return figures[:MOST_FIGURES] or [("rows", str(len(results.rows))), ("runs", str(len(results.runs)))]


def _section(part: Part) -> Section:
    return Section(heading=part.heading, text=part.text, code=part.code, table=part.table, svg=dict(part.drawings))


def _pictures(results: Results, out: Path) -> list[Picture]:
    """Return the last preview of the first seed of every method."""
    pictures = []
    seed = min((row.arm.seed for row in results.measured()), default=0)
    for row in results.measured():
        drawn = sorted((out / "runs" / row.arm.jobs[-1] / "run" / "previews").glob("*.png"))
        if row.arm.seed == seed and drawn:
            pictures.append(Picture(image=drawn[-1], caption=f"{row.arm.method}, {row.arm.downstream}, seed {seed}"))
    return pictures
