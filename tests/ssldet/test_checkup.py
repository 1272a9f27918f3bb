"""What the doctor says of detectron2, on machines that lack it, hold it too new, or hold it broken."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ssldet import checkup
from ssldet.checkup import Finding, doctor

FITTING = {
    "detectron2": "0.6",
    "fvcore": "0.1.5.post20221221",
    "iopath": "0.1.9",
    "omegaconf": "2.3.0",
    "yacs": "0.1.8",
}

Machine = Callable[[Mapping[str, str]], dict[str, Finding]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return what examines a machine that holds these packages besides the real ones."""
    real = checkup.version

    def version(package: str) -> str:
        if package not in FITTING:
            return real(package)
        if package not in held:
            raise checkup.PackageNotFoundError(package)
        return held[package]

    held: dict[str, str] = {}
    monkeypatch.setattr(checkup, "version", version)
    monkeypatch.setattr(checkup, "find_spec", lambda package: package if package in held else None)

    def examine(packages: Mapping[str, str]) -> dict[str, Finding]:
        held.update(packages)
        return {finding.subject: finding for finding in doctor(("detectron2",)).findings}

    return examine


def test_nothing_installed_is_a_failure_with_its_remedy(machine: Machine) -> None:
    missing = machine({})["detectron2"]
    assert missing.ok is False
    assert "--no-build-isolation" in missing.remedy


@pytest.mark.parametrize(("package", "found"), [("omegaconf", "2.4.1"), ("iopath", "0.1.10"), ("fvcore", "0.1.4")])
def test_versions_that_break_it(machine: Machine, package: str, found: str) -> None:
    findings = machine(FITTING | {package: found})
    assert findings[package].ok is False
    assert f"pip install '{package}>=" in findings[package].remedy
    others = set(FITTING) - {package, "detectron2"}
    assert all(findings[other].ok for other in others)


def test_what_it_compiled_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if name == "detectron2._C":
            raise ImportError("undefined symbol")

    monkeypatch.setattr(checkup, "import_module", load)
    findings = machine(FITTING)
    assert findings["detectron2"].ok
    assert findings["detectron2._C"].ok is False
    assert "undefined symbol" in findings["detectron2._C"].detail
    assert findings["detectron2.model_zoo"].ok is None  # no pkg_resources here: worth knowing, not a failure


def test_images_that_can_not_be_had_are_named_as_such(tmp_path: Path) -> None:
    (found,) = (one for one in doctor([str(tmp_path / "nowhere")]).findings if one.subject == "images")
    assert found.ok is False
    assert "no such file or folder" in found.detail
