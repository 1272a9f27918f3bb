"""Names and values -> a small piece of HTML, as which a notebook shows an object; all text is escaped."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ssldet.report.wording import printable

_GRADES = {"good": "#16a34a", "so": "#d97706", "bad": "#dc2626"}
_CELL = "text-align:left;padding:0.15em 1.2em 0.15em 0"


def card(
    title: str,
    *,
    text: Sequence[str] = (),
    grade: str = "",
    rows: Mapping[str, str] | None = None,
    table: Sequence[Sequence[object]] = (),
    details: Mapping[str, str] | None = None,
) -> str:
    """Return a card in the colours of the notebook, light or dark.

    Args:
        title: Its title.
        text: Sentences below it, the first one prominent.
        grade: `good`, `so` or `bad` colours the edge.
        rows: Names and values.
        table: A table; its first row is the header.
        details: Summary -> text that is shown when one asks for it.
    """
    edge = _GRADES.get(grade, "#9ca3af")
    parts = [Markup("<b>{}</b>").format(_shown(title))]
    parts += [Markup("<div>{}</div>").format(_shown(line)) for line in text]
    cells = [[name, value] for name, value in (rows or {}).items()]
    parts += [_table(cells, "td"), _table(table, "th")]
    parts += [
        Markup('<details><summary>{}</summary><pre style="margin:0.3em 0">{}</pre></details>').format(
            _shown(name), _shown(body)
        )
        for name, body in (details or {}).items()
    ]
    style = f"border-left:4px solid {edge};padding:0.2em 0 0.2em 0.9em;line-height:1.5"
    return str(Markup('<div style="{}">{}</div>').format(style, Markup("").join(parts)))


def _table(rows: Sequence[Sequence[object]], first: str) -> Markup:
    """Return a table; the cells of its first row are `th` or `td`."""
    if not rows:
        return Markup("")
    header, cell = Markup('<th style="{}">{}</th>'), Markup('<td style="{}">{}</td>')
    lines = []
    for number, row in enumerate(rows):
        form = header if number == 0 and first == "th" else cell
        lines.append(Markup("<tr>{}</tr>").format(Markup("").join(form.format(_CELL, _shown(value)) for value in row)))
    return Markup('<table style="margin:0.3em 0">{}</table>').format(Markup("").join(lines))


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else printable(value)
