"""Before training it is known which formats will hold a detector, and which fields open more of them."""

from pathlib import Path

import pytest
import torch

from ssldet.errors import CheckpointError
from ssldet.importing.base import Opened
from ssldet.recipe import override, to_document
from ssldet.registry import names
from ssldet.verbs import exporting
from ssldet.verbs.choosing import resolve
from ssldet.verbs.formats import formats_of, formats_of_built


@pytest.mark.parametrize("recipe", ["detection/tiny", "detection/small"])
def test_the_switches_that_are_named_open_the_formats(recipe: str) -> None:
    run = resolve(recipe)
    before = torch.get_rng_state()
    formats = formats_of_built(run.detector)
    assert torch.equal(before, torch.get_rng_state()), "training after this question would draw other numbers"
    assert list(formats.reasons) == names("ssldet.exporters")
    assert {name for name, why in formats.reasons.items() if not why} >= {"safetensors", "onnx"}
    assert formats.switches("huggingface")
    for name in formats.reasons:
        if switches := dict(switch.split("=") for switch in formats.switches(name)):
            config = override(run, {**switches, "detector.backbone.weights": "none"}).detector
            assert formats_of(config.build(), config).reasons[name] == (), name
            assert f"--set {' '.join(formats.switches(name))}" in str(formats)


def test_activations_inside_norms_are_what_transformers_loses() -> None:
    config = resolve("detection/small").detector
    assert "loses the activations" in " ".join(formats_of(config.build(), config).reasons["huggingface"])


def test_a_refused_export_names_the_formats_that_take_the_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resolve("detection/deformable-tiny")
    objective = run.task.objective(run.detector.build())
    opened = Opened(objective=objective, task=run.task, info={"detector": to_document(run.detector)})
    monkeypatch.setattr(exporting, "open_trained", lambda *_: opened)
    with pytest.raises(CheckpointError, match=r"only 'detr' can be written; this detector can be exported to .*onnx"):
        exporting.export("run", to="detr", out=tmp_path / "detector.pth")
    assert list(tmp_path.iterdir()) == []
