"""Before training it is known which formats will hold a detector, and which fields open more of them."""

import pytest
import torch

from ssldet.recipe import override
from ssldet.registry import names
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
    assert "loses the activations" in formats_of(config.build(), config).reasons["huggingface"][0]
