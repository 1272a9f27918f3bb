"""The pages are true: messages are those of the code, generated pages are complete, the tutorial runs."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ssldet import cli, registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _texts() -> str:
    """Every string of the code; what differs in a message is a line end here."""
    texts = []
    for house in ("ssldet", "pretext", "downstream"):
        for path in (ROOT / house).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(re.sub(r"%[sd]", "\n", node.value))
    return "\n\n".join(texts)


def test_every_message_of_troubleshooting_is_one_of_the_code() -> None:
    page, texts = (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), _texts()
    messages = re.findall(r"^\| `([^`]+)` \|", page.split("## Nothing")[1], flags=re.MULTILINE)
    assert len(messages) > 25
    stale = [
        message
        for message in messages
        # "coco:…" is text of messages, an ellipsis between blanks stands for what differs.
        if any(part.strip() not in texts for part in message.split(" … "))
    ]
    assert stale == []


def test_every_exit_code_is_explained() -> None:
    from ssldet import errors

    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SsldetError)]
    assert told == {kind.exit_code for kind in kinds if kind is not errors.SsldetError}


def test_the_reference_names_every_recipe_with_its_fields_and_every_verb() -> None:
    generated = _module("generated")
    pages = generated.recipe_pages()
    for recipe in registry.names("ssldet.recipes"):
        assert f"`{recipe}`" in pages["recipes"]
        assert f"## {recipe}\n" in pages[f"recipes_{recipe.partition('/')[0]}"]
    assert "| `optim.lr` | " in pages["recipes_detection"]
    page = generated.options()
    for verb in [*(name for name in cli.app if not name.startswith("-")), *registry.names("ssldet.verbs")]:
        assert f"ssldet {verb}" in page, verb
    assert "--threshold" in page


def test_every_page_is_in_a_table_of_contents() -> None:
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    blocks = [
        entry
        for path in DOCS.glob("*.md")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for entry in block.splitlines()
    ]
    assert pages <= set(blocks)


@pytest.mark.slow
def test_the_tutorial_runs_in_its_small_form(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    cells = _module("cells")
    outputs = list(cells.run(text, tmp_path, cells.SMALL))
    assert len(outputs) == len(cells.BLOCK.findall(text))
    assert "![" in outputs[2]
    assert "overlap of found patches 0." in outputs[4]
    assert "pretrained: AP" in outputs[5]
    assert "report.html" in outputs[6]
    assert "parameters" in outputs[-1]


def test_the_tutorial_is_a_notebook_too() -> None:
    book = _module("cells").notebook((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    kinds = [cell["cell_type"] for cell in book["cells"]]
    assert kinds[:2] == ["markdown", "code"]
    assert kinds.count("code") >= 8
    assert json.loads(json.dumps(book))["nbformat"] == 4
    assert book["cells"][1]["source"][0] == "import ssldet\n"
