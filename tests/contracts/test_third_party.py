"""A package of somebody else adds a task, a detector and a source; no file of ours knows it, and all of it works."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "third_party"

LAWS = """
from sketches.find_the_crop import FindTheCrop
from sketches.patch_transformer import PatchTransformerConfig
from sketches.stripes import Stripes
from ssldet.testing import check_detector, check_pretext_task, check_source

check_pretext_task(FindTheCrop())
check_detector(PatchTransformerConfig())
check_source(Stripes(count=10))
print("kept")
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel installs it, entry points included."""
    folder = tmp_path_factory.mktemp("third-party")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, capture_output=True, cwd=PACKAGE, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def python(installed: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def ssldet(installed: Path, *words: str | Path) -> str:
    return python(installed, "-m", "ssldet", *map(str, words))


def test_everything_is_listed(installed: Path) -> None:
    assert "find_the_crop" in ssldet(installed, "list", "tasks")
    assert "find_the_crop/tiny" in ssldet(installed, "list", "recipes")
    assert "stripes" in ssldet(installed, "list", "sources")


def test_all_laws_are_kept(installed: Path) -> None:
    assert python(installed, "-c", LAWS).strip() == "kept"


def test_it_trains_resumes_previews_hands_over_and_is_exported(installed: Path, tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    preview = ssldet(installed, "preview", "stripes:12", "--task", "find_the_crop", "--out", tmp_path / "preview.png")
    assert "preview.png" in preview
    assert (tmp_path / "preview.png").stat().st_size > 1000
    common = ("stripes:12", "--recipe", "find_the_crop/tiny", "--val", "stripes:6")
    ssldet(installed, "pretrain", *common, "--out", run)
    whole = json.loads((run / "run.json").read_text())
    assert whole["status"] == "finished"
    assert 0 <= whole["results"]["patch_iou"] <= 1
    ssldet(installed, "pretrain", "--resume", run, "--set", "budget.steps=8")
    assert json.loads((run / "run.json").read_text())["steps"] == 8
    ssldet(installed, "finetune", run, "--data", "stripes:12", "--recipe", "find_the_crop/boxes", "--out", tuned)
    report = json.loads((tuned / "transfer.json").read_text())["rows"]
    outcomes = {row["section"]: row["outcome"] for row in report if row["section"]}
    assert outcomes["patchify"] == "loaded", "a section that the package invented is handed over by itself"
    assert outcomes["class_head"] != "loaded"
    ssldet(installed, "export", tuned, "--to", "safetensors", "--out", tmp_path / "out.safetensors")
    answer = ssldet(installed, "predict", tuned, "stripes:3", "--out", tmp_path / "found")
    assert answer
    assert len(list((tmp_path / "found").glob("*.png"))) == 3
