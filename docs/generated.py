"""The code -> pages of reference: every recipe with its fields, and every option of the command line."""

from collections import defaultdict
from pathlib import Path

from ssldet import cli
from ssldet.catalogue import list_names
from ssldet.recipe import dumps
from ssldet.registry import find, names
from ssldet.verbs.choosing import resolve
from ssldet.verbs.showing import show

NO_EDIT = "<!-- Written when the pages are built. -->\n\n"


def write(folder: Path) -> None:
    """Write all pages; a page that is the same already is left alone, so that it is not built again.

    Args:
        folder: Where to.
    """
    folder.mkdir(exist_ok=True)
    for name, text in {**recipe_pages(), "options": options()}.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != NO_EDIT + text:
            path.write_text(NO_EDIT + text, encoding="utf-8")


def recipe_pages() -> dict[str, str]:
    """Return name -> page: a list of all recipes, and for each task its recipes with all fields."""
    about = {row["name"]: row["about"] for row in list_names("recipes").to_json()}
    by_task: dict[str, list[str]] = defaultdict(list)
    for recipe in about:
        by_task[recipe.partition("/")[0]].append(recipe)
    pages = {f"recipes_{task}": _task_page(task, recipes, about) for task, recipes in by_task.items()}
    rows = "\n".join(
        f"| [`{recipe}`](recipes_{task}.md) | {_cell(about[recipe])} |"
        for task, recipes in by_task.items()
        for recipe in recipes
    )
    listed = "\n".join(f"recipes_{task}" for task in by_task)
    pages["recipes"] = (
        "# Recipes\n\nA recipe is a whole run: task, detector, data, optimiser, length. `--recipe NAME` takes one, and "
        "`--set FIELD=VALUE` changes any field. Each page lists the fields of one task with their meaning, and the "
        f"values of every recipe.\n\n| recipe | what |\n|---|---|\n{rows}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )
    return pages


def options() -> str:
    """Return the page of the command line, with the verbs of plug-ins."""
    text = cli.app.generate_docs()
    start = text.index("\n## ssldet ", text.index("## Table of Contents"))
    plugins = [
        find("ssldet.verbs", name).generate_docs(heading_level=2, usage_name=f"ssldet {name}")
        for name in names("ssldet.verbs")
    ]
    intro = (
        "# Options of the command line\n\nEvery verb takes `--help`, and `--json` where it prints something. "
        "`--debug` adds a traceback to an error; `--install-completion` teaches your shell the options.\n"
    )
    own = text[start:].split("\n## ssldet detectron2\n")[0]
    return intro + own + "".join(f"\n{_without_contents(page)}" for page in plugins)


def _without_contents(page: str) -> str:
    head, _, rest = page.partition("### Table of Contents")
    return head + rest[rest.index("\n### ") :] if rest and "\n### " in rest else page


def _task_page(task: str, recipes: list[str], about: dict[str, str]) -> str:
    fields: dict[str, str] = {}
    for recipe in recipes:
        for field in show(recipe).fields:
            accepts, meaning = _cell(field.accepts), _cell(field.about)
            fields.setdefault(field.path, f"| `{field.path}` | {meaning} | {accepts} |")
    rows = "\n".join(fields.values())
    text = f"# Recipes of {task}\n\n## Fields\n\n| field | meaning | accepts |\n|---|---|---|\n{rows}\n"
    for recipe in recipes:
        text += f"\n## {recipe}\n\n{about[recipe]}\n\n```toml\n{dumps(resolve(recipe))}```\n"
    return text


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*").replace("\n", " ")
