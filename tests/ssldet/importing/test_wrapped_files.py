"""Detectors as training programs save them: averaged, parallel, inside Lightning modules, without their class heads."""

import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from downstream.detection import Detection
from pretext.random_query_patch import PatchDetection, RandomQueryPatch
from ssldet.detectors.base import DetectorConfig
from ssldet.errors import CheckpointError
from ssldet.task import Objective
from ssldet.verbs.handing import transfer
from ssldet.verbs.opening import load, open_model, open_trained
from ssldet.weights.deformable_detr_names import to_authors
from ssldet.weights.detr import to_detr
from tests.models import SMALL_DEFORMABLE_DETR, SMALL_DETR

State = dict[str, Tensor]
KINDS = ("DETR", "masks", "UP-DETR", "Deformable DETR", "two stages")
CONFIGS: dict[str, DetectorConfig] = {
    "DETR": SMALL_DETR,
    "masks": replace(SMALL_DETR, masks=True),
    "UP-DETR": SMALL_DETR,
    "Deformable DETR": SMALL_DEFORMABLE_DETR,
    "two stages": replace(SMALL_DEFORMABLE_DETR, refine_boxes=True, two_stage=True),
}
OPTIONS = {"nheads": 4, "num_queries": 11}


def model(kind: str, seed: int = 0) -> tuple[Objective, State]:
    """Return a model, and its tensors by the names of its authors."""
    torch.manual_seed(seed)
    task = RandomQueryPatch(num_patches=3) if kind == "UP-DETR" else Detection()
    objective = task.objective(CONFIGS[kind].build())
    if kind in ("Deformable DETR", "two stages"):
        return objective, to_authors(objective.detector.state_dict())
    return objective, to_detr(objective.state_dict(), PatchDetection.detr_names)


def bare_module(state: Mapping[str, Tensor]) -> nn.Module:
    """Return a module with these tensors, shared where they are."""
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        place = root
        for word in path:
            if word not in place._modules:
                place.add_module(word, nn.Module())
            place = place.get_submodule(word)
        place.register_buffer(last, value)
    return root


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def shifted(state: Mapping[str, Tensor]) -> State:
    """Return other weights of the same shape."""
    return {name: value + 1 for name, value in state.items()}


def without_fixed_norms(state: Mapping[str, Tensor]) -> State:
    """Return what a hand-written average of parameters holds, in which fixed batch norms are missing."""
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    return {name: value for name, value in state.items() if name.rpartition(".")[0] not in norms}


def averaged(state: Mapping[str, Tensor]) -> State:
    return {"n_averaged": torch.tensor(7), **under("module.", state)}


def with_norms_of(average: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> State:
    return {name: average.get(name, value) for name, value in state.items()}


Wrap = Callable[[State], Any]
SINGLE: dict[str, Wrap] = {
    "parallel": lambda s: {"model": under("module.", s)},
    "Lightning": lambda s: {"state_dict": under("model.", s), "pytorch-lightning_version": "2.6.4"},
    "Lightning with a loss": lambda s: {"state_dict": {**under("net.", s), "criterion.empty_weight": torch.ones(6)}},
    "Lightning as detr": lambda s: {"state_dict": {**under("detr.", s), "criterion.empty_weight": torch.ones(6)}},
    "Lightning, parallel, compiled": lambda s: {"state_dict": under("model.module._orig_mod.", s)},
    "AveragedModel": averaged,
    "AveragedModel in a wrapper": lambda s: {"model_state_dict": averaged(s)},
    "DeepSpeed": lambda s: {"module": s, "global_steps": 3},
}
AVERAGES: dict[str, Wrap] = {
    "model_ema": lambda s: {"model": shifted(s), "model_ema": s},
    "ema_state_dict": lambda s: {"state_dict": under("module.", shifted(s)), "ema_state_dict": averaged(s)},
    "ema with updates": lambda s: {"model": shifted(s), "ema": {"module": s, "updates": 12, "warmups": 100}},
    "prefixes": lambda s: {"state_dict": {**under("model.", shifted(s)), **under("ema_model.module.", s)}},
    "beside plain names": lambda s: {**shifted(s), **under("ema.module.", s), "ema.n_averaged": torch.tensor(3)},
    "online and average": lambda s: {**under("online_model.", shifted(s)), **under("ema_model.", s)},
    "teacher": lambda s: {"model": {**under("modelStudent.", shifted(s)), **under("modelTeacher.", s)}},
}


def save(document: Any, path: Path) -> Path:
    beside = {} if all(isinstance(value, Tensor) for value in document.values()) else {"args": Namespace(**OPTIONS)}
    torch.save({"model": document, "args": OPTIONS} if not beside else document | beside, path)
    return path


def same(objective: Objective, path: Path) -> bool:
    ours, theirs = objective.state_dict(), open_model(path).objective.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(("kind", "wrapper"), [*product(("DETR",), SINGLE), *product(KINDS[1:], ("Lightning",))])
def test_a_detector_inside_a_wrapper_opens(kind: str, wrapper: str, tmp_path: Path) -> None:
    objective, state = model(kind)
    assert same(objective, save(SINGLE[wrapper](state), tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("kind", "wrapper"), [*product(("Deformable DETR",), AVERAGES), *product(KINDS, ("prefixes", "beside plain names"))]
)
def test_averaged_weights_are_taken_before_others_and_this_is_said(
    kind: str, wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective, state = model(kind)
    assert same(objective, save(AVERAGES[wrapper](state), tmp_path / "a.pth"))
    assert "a.pth: took the averaged weights" in caplog.text
    assert ", not those " in caplog.text


def test_what_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, state = model("DETR")
    open_model(save(SINGLE["Lightning with a loss"](state), tmp_path / "a.pth"))
    assert "left out 1 tensors outside 'net.': criterion.empty_weight" in caplog.text


@pytest.mark.parametrize("wrapper", ["model_ema", "prefixes"])
@pytest.mark.parametrize("kind", ["DETR", "Deformable DETR"])
def test_an_average_of_parameters_gets_fixed_norms_of_the_model(
    kind: str, wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, state = model(kind)
    average = shifted(without_fixed_norms(state))
    assert len(average) < len(state)
    documents = {
        "model_ema": {"model": state, "model_ema": average},
        "prefixes": {"state_dict": {**under("model.", state), **under("ema.", average)}},
    }
    opened = open_model(save(documents[wrapper], tmp_path / "a.pth")).objective
    expected = with_norms_of(average, state)
    rename = to_authors if kind == "Deformable DETR" else to_detr
    found = rename(opened.detector.state_dict() if kind == "Deformable DETR" else opened.state_dict())
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert f"took {len(state) - len(average)} tensors of batch norms" in caplog.text


def test_torchs_own_average_opens(tmp_path: Path) -> None:
    objective, state = model("DETR")
    assert same(objective, save({"model": AveragedModel(bare_module(state)).state_dict()}, tmp_path / "a.pth"))


def test_two_copies_of_one_rank_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    objective, state = model("DETR")
    both = {**under("one.", state), **under("two.", state)}
    assert same(objective, save(both, tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match=r"more than once, under 'one\.' and 'two\.', with other weights"):
        open_model(save(both | under("two.", shifted(state)), tmp_path / "b.pth"))


def test_problems_of_a_wrapped_file_are_named_as_in_the_file(tmp_path: Path) -> None:
    for kind in ("DETR", "Deformable DETR"):
        _, state = model(kind)
        state["transformer.decoder.layers.0.normal2.bias"] = state.pop("transformer.decoder.layers.0.norm2.bias")
        state["transformer.encoder.layers.0.linear1.bias"] = torch.ones(3)
        with pytest.raises(CheckpointError) as told:
            open_model(save({"state_dict": under("model.", state)}, tmp_path / f"{kind}.pth"))
        said = str(told.value)
        assert "transformer.decoder.layers.0.norm2.bias is missing" in said
        assert "layers.0.normal2.bias is unknown here (did you mean 'transformer.decoder.layers.0.norm2.bias'?)" in said
        assert "transformer.encoder.layers.0.linear1.bias has shape [3] instead of [40]" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_safetensors_file_opens_like_the_same_tensors_in_pth(kind: str, tmp_path: Path) -> None:
    objective, state = model(kind)
    apart = {name: value.clone() for name, value in under("module.", state).items()}
    save_file(apart, tmp_path / "a.safetensors", metadata={"args": json.dumps(OPTIONS)})
    assert same(objective, tmp_path / "a.safetensors")


def test_shared_heads_that_safetensors_left_out_come_back(tmp_path: Path) -> None:
    """`save_model` writes a tensor that several modules share once, as those of Deformable DETR do."""
    for kind, config in (
        ("plain", SMALL_DEFORMABLE_DETR),
        ("refined", replace(SMALL_DEFORMABLE_DETR, refine_boxes=True)),
    ):
        detector = config.build()
        file = tmp_path / f"{kind}.safetensors"
        module = bare_module(to_authors(detector.state_dict()))
        save_model(module, str(file), metadata={"args": json.dumps(OPTIONS)})
        found = open_model(file).objective.detector.state_dict()
        assert found.keys() == detector.state_dict().keys()
        assert all(torch.equal(value, found[name]) for name, value in detector.state_dict().items())


def test_refined_boxes_without_the_names_inside_the_decoder_are_still_refined(tmp_path: Path) -> None:
    detector = replace(SMALL_DEFORMABLE_DETR, refine_boxes=True).build()
    state = {name: value for name, value in to_authors(detector.state_dict()).items() if ".decoder.bbox_" not in name}
    found = open_model(save({"model": state}, tmp_path / "a.pth")).objective.detector.state_dict()
    assert found.keys() == detector.state_dict().keys()


@pytest.mark.parametrize(("kind", "suffix"), [*product(KINDS, ("pth",)), ("DETR", "safetensors")])
def test_a_file_without_class_head_hands_over_the_rest_and_answers_nothing(
    kind: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objective, state = model(kind)
    headless = {name: value.clone() for name, value in state.items() if "class_embed" not in name}
    path = tmp_path / f"a.{suffix}"
    if suffix == "safetensors":
        save_file(headless, path, metadata={"args": json.dumps(OPTIONS)})
    else:
        save({"model": headless}, path)
    opened = open_model(path)
    assert (opened.fresh, opened.classes) == (("class_head",), ())
    detector = replace(CONFIGS[kind], num_classes=3).build()
    fresh = {name: value.clone() for name, value in detector.state_dict().items() if "class_head" in name}
    transfer(path, detector, classes=("owl", "bat", "hen"))
    ours = objective.detector.state_dict()
    for name, value in detector.state_dict().items():
        if not name.startswith("class_head"):
            assert torch.equal(value, ours[name]), name
        else:
            assert torch.equal(value, fresh[name]), name
    with pytest.raises(CheckpointError, match="holds no class_head, so it finds nothing before it is trained"):
        open_trained(path)
    load(path)
    assert "holds no class_head, which gets fresh weights" in caplog.text
