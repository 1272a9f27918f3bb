"""Where a run computes, as its configuration, the machine and a launcher say."""

from types import ModuleType
from typing import Any

import pytest
import torch

from ssldet.engine.devices import account, placement_of, settled
from ssldet.errors import ConfigError, SetupError


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with eight GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data__batch_size": 32}, "8 GPUs: 4 images on each, precision bf16"),
        ({"data__batch_size": 32, "devices": 2}, "2 GPUs: 16 images on each, precision bf16"),
        (
            {"data__batch_size": 32, "optim__accumulate": 4},
            "8 GPUs: 1 image on each in each of 4 parts, precision bf16",
        ),
        ({"data__batch_size": 12}, "6 GPUs: 2 images on each, precision bf16"),
        ({"data__batch_size": 7}, "7 GPUs: 1 image on each, precision bf16"),
        ({"data__batch_size": 32, "precision": "32"}, "8 GPUs: 4 images on each, precision 32"),
        ({"data__batch_size": 32, "device": "cpu"}, "CPU: 32 images on it, precision 32"),
        ({"data__batch_size": 32, "device": "cpu", "devices": 2}, "2 processes on the CPU: 16 images on each"),
    ],
)
@pytest.mark.usefixtures("eight")
def test_all_devices_that_can_share_a_batch_are_used_and_that_is_said(
    fakes: ModuleType, changes: dict[str, Any], line: str
) -> None:
    run = settled(fakes.a_run(**{"device": "auto", "precision": "auto", **changes}))
    said = account(run, placement_of(run))
    assert said.startswith(line)
    assert ("since 12 images" in said) is (run.data.batch_size == 12)
    assert ("TF32" in said) is (run.device != "cpu")


@pytest.mark.usefixtures("eight")
def test_a_launcher_decides_how_many_there_are(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    run = fakes.a_run(device="auto", data__batch_size=64, devices=1)
    assert account(settled(run), placement_of(run)).startswith("16 GPUs on 2 machines: 4 images on each")
    with pytest.raises(ConfigError, match="40 images can't be split equally among 16 devices"):
        placement_of(fakes.a_run(device="auto", data__batch_size=40))


def test_a_notebook_takes_one_device(fakes: ModuleType, eight: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    assert placement_of(fakes.a_run(device="auto", data__batch_size=32)).world == 1


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(fakes: ModuleType, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SetupError, match=f"device: {device} was asked for, but torch sees no such device"):
        placement_of(fakes.a_run(device=device))


def test_precision_is_settled_once(fakes: ModuleType, train: Any, tmp_path: Any) -> None:
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder
    from ssldet.engine.steps import Checkpoints

    run = fakes.a_run(budget__steps=2, precision="auto")
    assert run.precision == "auto"
    folder = RunFolder(tmp_path / "a")
    fit(run, folder)
    assert folder.run().precision == "32"
    found = Checkpoints(folder.checkpoints).newest()
    assert found is not None
    assert found.state["run"]["precision"] == "32"
    train(tmp_path / "a", fakes.a_run(budget__steps=3, devices=1, precision="auto"), resume=True)
