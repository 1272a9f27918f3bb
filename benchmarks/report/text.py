"""parts -> Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from benchmarks.report.contents import DASH, Part, result_table
from benchmarks.results import Results
from ssldet.report.sections import Table
from ssldet.report.wording import number, without_places

_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", DASH: "--", "<": "$<$"}


def to_markdown(results: Results, parts: Sequence[Part]) -> str:
    """Return the whole report without the recipes; drawings are separate files.

    Args:
        results: The results.
        parts: Parts of the report.
    """
    suite = results.suite
    blocks = [f"# {suite['name']}, {suite['scale']}", suite["question"]]
    for place, part in enumerate(parts):
        # The first part needs no heading.
        blocks += [f"## {part.heading}"] if place else []
        blocks += [part.text] if part.text else []
        blocks += [markdown(part.table)] if part.table and part.table.rows else []
        blocks += [f"![{title}](figures/{part.file_of(title)}.svg)" for title in part.drawings]
        if part.code:
            blocks.append("In `report.html`." if part.heading == "Recipes" else f"```bibtex\n{part.code}\n```")
    return without_places("\n\n".join(blocks)) + "\n"


def to_csv(results: Results) -> str:
    """Return one line per row of the result, including trials and rows without a result."""
    names = sorted(
        {name for row in results.rows for name, value in row.results.items() if isinstance(value, int | float)}
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("method", "model", "task", "fraction", "seed", "rate", "trial", "status", "reason", "seconds", "run")
    writer.writerow([*head, *names])
    for row in results.rows:
        arm = row.arm
        writer.writerow(
            [
                arm.method, arm.model, arm.downstream, arm.fraction, arm.seed, arm.rate, arm.trial, row.status,
                without_places(row.reason), row.seconds, arm.jobs[-1] if arm.jobs else "",
                *(row.results.get(name) for name in names),
            ]
        )  # fmt: skip
    return file.getvalue()


def to_latex(results: Results) -> str:
    """Return the table of results for a paper that loads `booktabs`."""
    table = result_table(results)
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(_latex, table.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def markdown(table: Table) -> str:
    """Return a table as the lines of one in Markdown.

    Args:
        table: Its cells may be text or numbers.
    """
    rows = [[_cell(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in table.rows]
    head = list(table.columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _latex(value: Any) -> str:
    return "".join(_LATEX.get(char, char) for char in _cell(value))
