"""Markdown with blocks of Python -> the same with what they print and draw, and as a notebook to download.

The blocks run in order in one namespace and in an empty folder, as in a notebook. A block that ends in an expression
shows its value. A picture that a block leaves as `NAME.png` and names in its last line is shown below it.
"""

import ast
import contextlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)


SMALL = {"PRETRAIN_STEPS": 1, "FINETUNE_STEPS": 1, "IMAGES": 8, "LABELLED": 8}
"""What makes the tutorial short, for a test or a quick look at the pages."""


def executed(text: str, folder: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Return a page with its outputs; its pictures and its notebook are written to a folder.

    Args:
        text: The page.
        folder: Where to; made anew.
        settings: As for `run`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outputs = run(text, folder, settings)
    (folder / "tutorial.ipynb").write_text(json.dumps(notebook(text), indent=1), encoding="utf-8")
    return BLOCK.sub(lambda block: f"{block[0]}{next(outputs)}", text)


def run(text: str, folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Execute the blocks of a page and yield what to show below each.

    Args:
        text: The page.
        folder: Pictures are copied here.
        settings: Names that keep these values whatever the first block gives them, such as shorter trainings.
    """
    names: dict[str, Any] = {"__name__": "tutorial"}
    with tempfile.TemporaryDirectory() as place, _inside(place):
        for number, block in enumerate(BLOCK.findall(text)):
            printed, value = _executed(block, names)
            names |= settings or {} if number == 0 else {}
            yield _shown(printed, value, Path(place), folder)


def notebook(text: str) -> dict[str, Any]:
    """Return a page as a Jupyter notebook without outputs.

    Args:
        text: The page.
    """
    parts = re.split(r"(```python\n.*?```\n)", text, flags=re.DOTALL)
    cells: list[dict[str, Any]] = []
    for part in filter(str.strip, parts):
        block = BLOCK.fullmatch(part)
        body = block[1] if block else part
        kind = {"cell_type": "code", "execution_count": None, "outputs": []} if block else {"cell_type": "markdown"}
        cells.append({**kind, "metadata": {}, "source": body.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def _executed(block: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a block; return what it printed and the value of its last line, if that is an expression."""
    tree = ast.parse(block)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, "tutorial", "exec"), names)  # noqa: S102  # the page is our own
        value = None if last is None else eval(compile(ast.Expression(last.value), "tutorial", "eval"), names)  # noqa: S307
    return printed.getvalue(), value


def _shown(printed: str, value: Any, place: Path, folder: Path) -> str:
    """Return output as Markdown."""
    path = place / str(value) if isinstance(value, str | Path) else None
    if path is not None and path.suffix == ".png" and path.is_file():
        name = path.relative_to(place).as_posix().replace("/", "-")
        shutil.copy(path, folder / name)
        return f"{_text(printed)}\n![what the cell draws](_generated/tutorial/{name})\n"
    return _text(printed + ("" if value is None else str(value)))


def _text(words: str) -> str:
    return f"\n```{{code-block}} text\n:class: output\n\n{words.rstrip()}\n```\n" if words.strip() else ""


@contextlib.contextmanager
def _inside(place: str) -> Iterator[None]:
    """Work in a folder, without messages of runs."""
    before, logger = Path.cwd(), logging.getLogger("ssldet")
    os.chdir(place)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        os.chdir(before)
