import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssldet.errors import CheckpointError
from ssldet.weights.files import read_state

STATE = {"conv1.weight": torch.arange(24.0).view(2, 3, 2, 2), "bn1.bias": torch.tensor([1.5, -2.5])}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def write_torch(path, document, **choices):
    torch.save(document, path, **choices)
    return path


def write_safetensors(path, state):
    save_file(state, path)
    return path


def same(state):
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_torch_files_of_both_forms(tmp_path, zipped):
    path = write_torch(tmp_path / "a.pth.tar", OrderedDict(STATE), _use_new_zipfile_serialization=zipped)
    state, origin = read_state(path)
    assert same(state)
    assert (origin.form, origin.wrapper, origin.prefix, origin.ignored) == ("torch", "", "", ())


@pytest.mark.parametrize(
    "damage",
    [{9: 0x08, 46: 0xCA}, {6: 0xFF}],
    ids=["a name that claims to be UTF-8 and is not", "a version of the future"],
)
def test_a_damaged_directory_of_an_archive_is_damage(tmp_path, damage):
    path = write_torch(tmp_path / "a.pth", STATE)
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    for offset, byte in damage.items():
        data[start + offset] = byte
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)


@pytest.mark.parametrize("name", ["a.safetensors", "renamed.pth"])
def test_the_first_bytes_tell_the_form_not_the_name(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path, metadata={"epoch": "3"})
    state, origin = read_state(path)
    assert same(state)
    assert (origin.form, origin.metadata) == ("safetensors", {"epoch": "3"})


@pytest.mark.parametrize("length", [0x80, 0x50, 0x93])
def test_a_table_of_contents_of_any_length_is_no_pickle(tmp_path, length):
    """Its length is what the file begins with, and one in 32 begins as a pickle does."""
    path = tmp_path / "a.safetensors"
    for filling in range(400):
        save_file(STATE, path, metadata={"filling": "x" * filling})
        if path.read_bytes()[0] == length & ~7:
            break
    assert path.read_bytes()[0] == length & ~7
    assert same(read_state(path)[0])


def test_a_newer_pickle_protocol_reads_without_a_warning(tmp_path):
    assert same(read_state(write_torch(tmp_path / "a.pth", STATE, pickle_protocol=3))[0])


def test_a_pickle_protocol_that_the_safe_reader_does_not_know_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="save its state_dict\\(\\) alone, or as safetensors"):
        read_state(write_torch(tmp_path / "a.pth", STATE, pickle_protocol=4))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher"])
def test_unwraps_and_keeps_the_options(tmp_path, wrapper):
    options = argparse.Namespace(nheads=4, output_dir=Path("runs/a"), best=np.float64(0.25))
    document = {"epoch": 7, wrapper: STATE, "args": options, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
    state, origin = read_state(write_torch(tmp_path / "a.pth", document))
    assert same(state)
    assert origin.wrapper == wrapper
    assert origin.options["nheads"] == 4
    assert origin.options["output_dir"].parts == ("runs", "a")
    assert origin.options["best"] == 0.25


def test_unwraps_twice_and_names_what_is_no_tensor(tmp_path):
    document = {"model": {"state_dict": STATE | {"version": 3, "names": ["a"]}}}
    state, origin = read_state(write_torch(tmp_path / "a.pth", document))
    assert same(state)
    assert (origin.wrapper, origin.ignored) == ("model.state_dict", ("version", "names"))


def test_strips_what_parallel_and_compiled_models_add(tmp_path):
    wrapped = {f"module._orig_mod.{name}": value for name, value in STATE.items()}
    state, origin = read_state(write_torch(tmp_path / "a.pth", wrapped))
    assert same(state)
    assert origin.prefix == "module."


def test_a_prefix_that_not_all_share_stays(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert read_state(write_torch(tmp_path / "a.pth", mixed))[0].keys() == mixed.keys()


def test_refuses_two_tensors_that_would_become_one(tmp_path):
    mixed = {"a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="keep one of them"):
        read_state(write_torch(tmp_path / "a.pth", mixed))


def save_zip(path, evil):
    torch.save(evil, path)


def save_legacy(path, evil):
    torch.save(evil, path, _use_new_zipfile_serialization=False)


def save_pickle(path, evil):
    path.write_bytes(pickle.dumps(evil))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("place", ["whole", "beside"])
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, save, place):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    save(path, Evil(canary) if place == "whole" else {"model": STATE, "args": Evil(canary)})
    with pytest.raises(CheckpointError, match="run code"):
        read_state(path)
    assert not canary.exists()


def test_a_whole_module_is_refused_with_its_name(tmp_path):
    path = write_torch(tmp_path / "a.pth", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"holds a Python object \(torch.nn.modules.linear.Linear\)"):
        read_state(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_state(path)


def write_zip_torch(path):
    return write_torch(path, STATE | {"large": torch.rand(500)})


def write_legacy_torch(path):
    return write_torch(path, STATE | {"large": torch.rand(500)}, _use_new_zipfile_serialization=False)


def write_large_safetensors(path):
    return write_safetensors(path, STATE | {"large": torch.rand(500)})


@pytest.mark.parametrize("write", [write_zip_torch, write_legacy_torch, write_large_safetensors])
def test_every_cut_is_noticed(tmp_path, write):
    content = write(tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for end in [0, 1, 3, 9, 20, 33, *range(50, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError) as caught:
            read_state(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Not found", "neither a safetensors nor a torch file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "neither a safetensors nor a torch file"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, content, words):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_state(path)


def test_other_archives_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/readme.txt", "hello")
    with pytest.raises(CheckpointError, match="without weights"):
        read_state(path)


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    path = write_torch(tmp_path / "a.pth", {"a": torch.zeros(2_000_000)})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as squeezed:
        for member in plain.infolist():
            squeezed.writestr(member.filename, plain.read(member))
    with pytest.raises(CheckpointError, match=r"would grow from \d+ to \d+ bytes"):
        read_state(tmp_path / "b.pth")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="vast claims more numbers than the file holds"):
        read_state(write_torch(tmp_path / "a.pth", {"vast": torch.zeros(1).expand(10**12)}))


@pytest.mark.parametrize("document", [{"epoch": 3}, [torch.ones(2)], torch.ones(2), {"model": {}}])
def test_a_file_without_named_tensors_is_refused(tmp_path, document):
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        read_state(write_torch(tmp_path / "a.pth", document))


def test_an_absent_file_brings_a_suggestion(tmp_path):
    write_torch(tmp_path / "model.pth", STATE)
    with pytest.raises(CheckpointError, match=r"no such file \(did you mean 'model.pth'\?\)"):
        read_state(tmp_path / "modle.pth")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="can't be read"):
        read_state(tmp_path)
