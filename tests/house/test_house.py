"""Rules of this repository that no type checker sees."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ssldet.registry import names

ROOT = Path(__file__).parents[2]
HOUSES = ("ssldet", "pretext", "downstream", "benchmarks")
FILES = sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py"))
NO_ROOM = {"utils", "util", "helpers", "misc", "common", "tools"}


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_says_what_it_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 400, "longer than 400 lines: it does two things"
    doc = ast.get_docstring(tree)
    assert doc, "no first line that says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            told = ast.get_docstring(node) is not None
            first = node.body[1 if told and len(node.body) > 1 else 0].lineno
            assert (node.end_lineno or 0) - first < 40, f"the body of {node.name} is longer than 40 lines"
    assert path.stem not in NO_ROOM


MAY_NAME_TASKS = {
    "defaults.py": "what users get who name nothing",
    "weights/zoo.py": "published weights are called after the methods that made them",
}


OTHER_MEANINGS = {
    "detection": {"cli/printing.py"},  # an object that was found
    "joint": {"nn/masks.py", "detectors/detr.py", "weights/detr.py", "weights/huggingface.py"},  # maps of masks
}
"""Name of a task that is also a word of its own -> the files of the core that use the word."""


def test_the_core_names_no_plug_in() -> None:
    tasks = names("ssldet.tasks")
    starts = tuple(f"{task}/" for task in tasks)
    named = {}
    for path in (ROOT / "ssldet").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        place = str(path.relative_to(ROOT / "ssldet"))
        texts -= {word for word, places in OTHER_MEANINGS.items() if place in places}
        if found := sorted(text for text in texts if text in tasks or text.startswith(starts)):
            named[place] = found
    assert named.keys() == MAY_NAME_TASKS.keys(), named


MAY_OPEN_FILES = {
    "ssldet/regular.py": "opens files for all others",
    "ssldet/disk.py": "makes new files",
    "ssldet/testing/exporters.py": "a file of its own",
    "ssldet/report/page.py": "a template of the package",
    "ssldet/citations.py": "a file of the package",
    "ssldet/verbs/speed.py": "a file of the package",
    "downstream/export/detectron2/names.py": "a file of the package",
    "benchmarks/address.py": "the code of the packages",
    "benchmarks/comparing.py": "a report that it has just written",
    "benchmarks/cost.py": "committed results",
    "benchmarks/launch.py": "a log of its own",
    "benchmarks/results.py": "/proc/cpuinfo, which is a file of Linux",
}


NO_FILES = {"Image", "importer", "opener", "os", "tarfile"}
"""Owners of a method `open` that gets a file which is open already, or that is not about files of others."""


def _opens_a_file(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value)
        return node.func.attr in {"read_text", "read_bytes"} or (node.func.attr == "open" and owner not in NO_FILES)
    return isinstance(node.func, ast.Name) and node.func.id == "open"


def test_files_are_opened_by_one_module_that_knows_pipes() -> None:
    opening = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(map(_opens_a_file, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert opening == MAY_OPEN_FILES.keys()


def test_importing_ssldet_is_cheap() -> None:
    heavy = {"torch", "torchvision", "timm", "lightly", "lightning_fabric", "pycocotools", "matplotlib"}
    assert _python(f"import ssldet, sys; print({heavy!r} & set(sys.modules))").strip() == "set()"


def test_every_name_in_the_table_of_contents_exists() -> None:
    _python("import ssldet\nfor name in ssldet.__all__: getattr(ssldet, name)")
    assert _python("import ssldet; print(sorted(ssldet._HOME) == sorted(ssldet.__all__))").strip() == "True"


def test_report_is_the_verb_after_any_other_verb() -> None:
    assert _python("import ssldet; ssldet.pretrain; print(callable(ssldet.report))").strip() == "True"


def test_listing_imports_nothing() -> None:
    code = "import sys; from ssldet.catalogue import list_names; print(list_names('tasks'), 'torch' in sys.modules)"
    out = _python(code + "; print('pretext' in sys.modules)")
    assert "random_query_patch" in out
    assert "True" not in out


def test_the_wheel_holds_the_three_houses_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in held} == {"ssldet", "pretext", "downstream"}
    assert {f"{house}/py.typed" for house in ("ssldet", "pretext", "downstream")} <= set(held)
