"""What the program imports before it is needed: nobody should wait for a library that the work does not use."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

LATER = (
    "jinja2",
    "lightly",
    "lightning_fabric",
    "matplotlib",
    "pycocotools",
    "pytorch_lightning",
    "scipy",
    "timm",
    "torchvision",
    "transformers",
)
"""Libraries that only some work needs; torchvision takes as long to import as torch, and Fabric longer."""


def loaded(code: str, among: Sequence[str]) -> list[str]:
    """Return which libraries a fresh process has imported after some code."""
    names = f"[name for name in {list(among)!r} if name in sys.modules]"
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*{names})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()


def test_the_package_imports_nothing_heavy() -> None:
    assert loaded("import ssldet", [*LATER, "torch", "numpy"]) == []


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["list", "recipes"], ["list", "tasks"]])
def test_help_and_lists_come_without_torch(words: list[str]) -> None:
    code = f"from ssldet.cli import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass"
    assert loaded(code, [*LATER, "torch"]) == []


def test_verbs_and_configurations_import_torch_alone() -> None:
    names = "ssldet.pretrain, ssldet.finetune, ssldet.evaluate, ssldet.predict, ssldet.load, ssldet.Run, ssldet.Task"
    assert loaded(f"import ssldet\n{names}", [*LATER, "torch"]) == ["torch"]


def test_one_process_trains_without_what_starts_several() -> None:
    code = (
        "from ssldet.engine import fit\nfrom ssldet.engine.devices import Placement, devices_for\n"
        "devices_for(Placement(kind='cpu', devices=1, machines=1, present=1), None).launch()"
    )
    assert loaded(code, [*LATER, "torchmetrics"]) == []
