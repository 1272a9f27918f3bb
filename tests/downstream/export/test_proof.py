import pytest
import torch
from safetensors.torch import load_file, save_file

from downstream.export.proof import Comparison, write_proven
from ssldet.errors import CheckpointError, ConfigError, SetupError

OURS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


def card(report):
    return f"# {report.proof}\n"


def write_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file(OURS, path / "model.safetensors")


def read_folder(path, difference=0.0, **changed):
    theirs = load_file(path / "model.safetensors") | changed
    return Comparison(ours=OURS, theirs=theirs, difference=lambda: difference, allowed=1e-4)


def test_a_folder_gets_its_name_at_the_end(tmp_path):
    out = tmp_path / "deep" / "model.v2"
    report = write_proven(out, write_folder, read_folder, card)
    assert (report.equal, report.tensors, report.parameters, report.difference) == (2, 2, 8, 0.0)
    assert report.size == sum(file.stat().st_size for file in out.iterdir() if file.name != "README.md")
    assert [path.name for path in out.parent.iterdir()] == ["model.v2"]
    assert (out / "README.md").read_text() == "# 2/2 tensors, 8 parameters, max |Δ| 0.0e+00\n"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bias": torch.ones(2)}, "1/2 tensors"),
        ({"extra": torch.ones(2)}, "2/3 tensors"),
        ({"difference": 2e-4}, r"2/2 tensors, .*2\.0e-04"),
        ({"difference": float("nan")}, "nan"),
    ],
)
def test_a_folder_that_came_back_otherwise_is_removed(tmp_path, change, told):
    with pytest.raises(CheckpointError, match=told):
        write_proven(tmp_path / "model", write_folder, lambda path: read_folder(path, **change), card)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    with pytest.raises(ConfigError, match="exists already"):
        write_proven(tmp_path, write_folder, read_folder, card)
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_file_lies_beside_it_and_is_not_overwritten(tmp_path):
    def write(path):
        save_file(OURS, path)

    def read(path):
        return Comparison(ours=OURS, theirs=load_file(path), difference=lambda: 0.0)

    write_proven(tmp_path / "model.bin", write, read, card)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.bin.md"]
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ConfigError, match=r"model.bin.md: exists already"):
        write_proven(tmp_path / "model.bin", write, read, card)


def test_half_a_folder_is_removed(tmp_path):
    def write(path):
        path.mkdir()
        (path / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    with pytest.raises(SetupError, match="No space left"):
        write_proven(tmp_path / "model", write, read_folder, card)
    assert list(tmp_path.iterdir()) == []
