"""What is no regular file is refused at once, whatever was to be read there."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ssldet.data.images import ImageRules, read_image
from ssldet.engine.checkpoint import load_weights
from ssldet.engine.folder import RunFolder
from ssldet.engine.log import logged_to
from ssldet.engine.steps import Checkpoints
from ssldet.engine.writing import PATIENCE, Lines
from ssldet.errors import CheckpointError, ConfigError, SetupError
from ssldet.jsonlines import read_lines
from ssldet.regular import NotRegularError, enough_files, open_regular, read_bytes, read_text, require_regular
from ssldet.report.record import read_record
from ssldet.verbs.opening import open_model
from ssldet.weights.files import read_header, read_state
from ssldet.weights.words import choose_backbone

pytestmark = pytest.mark.timeout(120)

READERS = open_regular, read_bytes, read_text, require_regular


def made(kind: str, path: Path) -> Path:
    """Make something that is no regular file."""
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    return path


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a socket"])
@pytest.mark.parametrize("use", [*READERS, lambda path: open_regular(path, "ab")])
def test_it_is_named_and_not_opened(use: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    path = made(kind, Path("odd"))
    with pytest.raises(NotRegularError, match=f"{kind}, not a regular file") as caught:
        use(path)
    assert caught.value.filename == "odd"


def test_a_regular_file_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open_regular(path, "ab") as file:
        file.write("ö\n".encode())
    (tmp_path / "b").symlink_to(path)
    assert read_text(tmp_path / "b") == "ö\n"
    assert read_bytes(path) == "ö\n".encode()
    assert read_text(path, errors="replace") == "ö\n"
    require_regular(path)


def test_what_becomes_a_pipe_between_two_looks_is_refused_too(tmp_path: Path, monkeypatch) -> None:
    path = made("a pipe", tmp_path / "odd")
    monkeypatch.setattr("ssldet.regular.require_regular", lambda path: None)
    with pytest.raises(NotRegularError, match="a pipe"):
        open_regular(path)


@pytest.mark.parametrize(
    "use",
    [
        open_regular,
        read_text,
        read_state,
        open_model,
        lambda path: read_image(path, ImageRules()),
        lambda path: Checkpoints(path.parent).newest(),
    ],
)
def test_too_many_open_files_are_no_fault_of_the_file(
    use: Callable[[Path], object], tmp_path: Path, monkeypatch
) -> None:
    Checkpoints(tmp_path).save(1, {"a": 1})
    path = tmp_path / "w.pth"
    path.write_bytes((tmp_path / "step-000001.ckpt").read_bytes())

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("ssldet.regular._without_waiting", refuse)
    with pytest.raises(SetupError, match=r"too many open files at .*; raise the limit with ulimit -n"):
        use(path)


def test_libraries_that_say_so_in_words_are_understood() -> None:
    with pytest.raises(SetupError, match=r"too many open files at a\.safetensors"), enough_files("a.safetensors"):
        raise RuntimeError("Too many open files (os error 24)")
    with pytest.raises(RuntimeError, match="something else"), enough_files("a.safetensors"):
        raise RuntimeError("something else")


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    for use in READERS:
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "none")


@pytest.mark.parametrize("use", [read_state, open_model, lambda path: choose_backbone(str(path)), load_weights])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_pipe_in_place_of_weights(use: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    path = made("a pipe", tmp_path / name)
    with pytest.raises(CheckpointError, match="a pipe, not a regular file"):
        use(path)
    assert read_header(path) == (frozenset(), {})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin.index.json"])
def test_a_pipe_in_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    if name != "config.json":
        (tmp_path / "config.json").write_text('{"architectures": ["DetrForObjectDetection"]}')
    made("a pipe", tmp_path / name)
    with pytest.raises(CheckpointError, match="a pipe, not a regular file"):
        open_model(tmp_path)


def test_a_pipe_in_a_folder_of_timm(tmp_path: Path) -> None:
    made("a pipe", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="a pipe, not a regular file"):
        choose_backbone(str(tmp_path))


def test_pipes_in_a_run_folder(tmp_path: Path, caplog) -> None:
    folder = RunFolder(tmp_path)
    for name in ("run.toml", "run.json", "metrics.jsonl", "lineage.json"):
        made("a pipe", tmp_path / name)
    with pytest.raises(ConfigError, match=r"run\.toml: .*a pipe, not a regular file"):
        folder.run()
    for read in (folder.status, folder.lineage):
        with pytest.raises(SetupError, match=r"\.json: a pipe, not a regular file"):
            read()
    with pytest.raises(NotRegularError, match="a pipe"):
        read_lines(tmp_path / "metrics.jsonl")
    lines = Lines(tmp_path / "metrics.jsonl")
    for _ in range(PATIENCE - 1):
        lines.write({"step": 1})
    with pytest.raises(SetupError, match="a pipe, not a regular file"):
        lines.write({"step": 1})
    made("a pipe", tmp_path / "train.log")
    with pytest.raises(NotRegularError, match="a pipe"), logged_to(tmp_path / "train.log"):
        pass
    read_record(tmp_path)
    assert "metrics.jsonl: can't be read (a pipe, not a regular file)" in caplog.text


@pytest.mark.parametrize("name", ["step-000001.ckpt", "step-000001.ckpt.sha256"])
def test_a_pipe_in_place_of_a_checkpoint_counts_as_damage(name: str, tmp_path: Path, caplog) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (0, 1):
        checkpoints.save(step, {"a": step})
    (tmp_path / name).unlink()
    made("a pipe", tmp_path / name)
    restored = checkpoints.newest()
    assert restored is not None
    assert restored.step == 0
    assert "a pipe, not a regular file" in caplog.text
