"""Results -> a report as one HTML file, Markdown with drawings, CSV and LaTeX."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.report.contents import Part, contents
from benchmarks.report.text import to_csv, to_latex, to_markdown
from benchmarks.results import Results
from benchmarks.statistics import PERCENT, summaries
from ssldet.report.page import Picture, Section, write_page

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
    (folder / "report.md").write_text(to_markdown(results, parts), encoding="utf-8")
    (folder / "results.csv").write_text(to_csv(results), encoding="utf-8")
    (folder / "results.tex").write_text(to_latex(results), encoding="utf-8")
    _write_figures(
        {f"{part.file_of(name)}.svg": svg for part in parts for name, svg in part.drawings.items()}, folder / "figures"
    )
    sections = [_section(part) for part in parts]
    if pictures is not None and (images := _pictures(results, pictures)):
        sections.insert(-3, Section(heading="What was detected", pictures=images))
    suite = results.suite
    return write_page(
        folder / "report.html",
        f"{suite['name']}, {suite['scale']}",
        sections,
        status="finished" if results.complete else "unfinished",
        figures=_key_figures(results),
        lead=suite["question"],
    )


def _write_figures(figures: Mapping[str, str], folder: Path) -> None:
    """Write the drawings of this report, and remove drawings that only an earlier report had."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        if old.name not in figures:
            old.unlink()
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
