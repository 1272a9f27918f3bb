"""The README runs: its Python as printed, its commands as printed, on generated images."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from downstream.annotations.shapes import write_shapes
from ssldet import cli, registry

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[2]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data that the README speaks of."""
    write_shapes(tmp_path / "made", images=24, seed=1)
    (tmp_path / "images").symlink_to(tmp_path / "made" / "images")
    (tmp_path / "photos").symlink_to(tmp_path / "made" / "images")
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_bytes((tmp_path / "made" / "instances.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_python_runs_as_printed(somewhere: Path) -> None:
    (code,) = _blocks("python")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=somewhere, timeout=280)
    assert result.returncode == 0, result.stderr
    assert 0 <= float(result.stdout.split()[-1]) <= 1


@pytest.mark.slow
def test_the_commands_run_as_printed(somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.effect_noise((32, 32), 60).convert("RGB").save(somewhere / "patch.png")
    commands = [shlex.split(line, comments=True) for line in "".join(_blocks("bash")).splitlines()]
    verbs = [words for words in commands if words and words[0] == "ssldet"]
    shown = {"preview", "pretrain", "finetune", "evaluate", "predict", "export", "report"}
    assert {words[1] for words in verbs} == shown
    for words in verbs:
        short = ["--steps", "3", "--set", "data.batch_size=4", "data.workers=0"]
        cli.main([*words[1:], *(short if words[1] in {"pretrain", "finetune"} else [])])
        assert "Traceback" not in capsys.readouterr().err
    assert (somewhere / "runs/fine/report.html").stat().st_size > 1000
    assert (somewhere / "detector.safetensors").exists()


def test_make_has_the_two_commands() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(_blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_verbs_are_those_of_the_command_line() -> None:
    sentence = README.split("## Commands")[1].partition("Each takes")[0]
    told = set(re.findall(r"`(\w+)`", sentence))
    assert told == {name for name in cli.app if not name.startswith("-")} | set(registry.names("ssldet.verbs"))
