"""Weights files, and the hand-over of sections."""

import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ssldet.citations import cited
from ssldet.classes import match_classes
from ssldet.detectors.detr import DETR, DETRConfig
from ssldet.engine.checkpoint import (
    TransferReport,
    load_exactly,
    load_weights,
    restore_objective,
    save_weights,
    section_of,
    transfer_sections,
)
from ssldet.engine.description import describe, stated
from ssldet.engine.run import Run
from ssldet.errors import CheckpointError, ConfigError
from ssldet.nn.backbones import BackboneConfig
from ssldet.recipe import load, override, to_document
from ssldet.verbs.choosing import changes_of


@pytest.fixture
def saved(tmp_path: Path, fakes: ModuleType) -> tuple[Path, Any, Any]:
    """A weights file, its objective and its run."""
    run = fakes.a_run()
    objective = run.task.objective(run.detector.build())
    path = tmp_path / "weights" / "model.safetensors"
    save_weights(path, objective, describe(run, stated(fakes.FakeSource(10)), 12))
    return path, objective, run


def test_an_objective_comes_back_with_what_it_is(saved: tuple[Path, Any, Any], fakes: ModuleType) -> None:
    path, objective, run = saved
    again, info = restore_objective(path)
    assert type(again) is fakes.FakeObjective
    assert again.task == run.task
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in objective.state_dict().items())
    assert (info["step"], info["classes"], info["schema"], info["data"]) == (12, ["cat", "dog"], 1, "fake-10-")
    assert info["detector"] == {"name": "engine_fakes:FakeDetectorConfig", "num_classes": 2, "num_queries": 3}


@pytest.mark.parametrize("part", ["task", "detector"])
def test_no_file_chooses_what_is_imported(
    saved: tuple[Path, Any, Any], fakes: ModuleType, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, objective, run = saved
    trace = path.with_name("imported")
    (path.parent / "stranger_module.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(path.parent)
    info = describe(run, stated(fakes.FakeSource(10)), 12, [{part: {"name": "stranger_module:Thing"}}])
    for name in ("stranger_module:Thing", "os:system", "subprocess:Popen", f"{__name__}:Any"):
        save_weights(path, objective, {**info, part: {"name": name}})
        with pytest.raises(ConfigError, match="name: "):
            restore_objective(path)
        record = path.with_name("run.toml")
        document = to_document(run)
        record.write_text(tomli_w.dumps({**document, part: {**document[part], "name": name}}))
        with pytest.raises(ConfigError, match=f"{part}.name: "):
            load(Run, record)
    assert cited(info["lineage"]) == ""
    assert not trace.exists()
    changes_of((), overrides={f"{part}.name": "stranger_module:Thing"})
    assert trace.exists(), "the caller named it"
    sys.modules.pop("stranger_module")
    assert override(run, {f"{part}.name": to_document(run)[part]["name"]}) == run


def test_tied_and_non_contiguous_tensors_are_saved(tmp_path: Path, fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    objective.detector.encoder[0].weight = objective.detector.decoder[0].weight
    objective.detector.box_head.weight = nn.Parameter(torch.randn(6, 4).T)
    save_weights(tmp_path / "tied.safetensors", objective, {"schema": 1, "task": {}, "detector": {}, "classes": []})
    _, state = load_weights(tmp_path / "tied.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in objective.state_dict().items())


def test_every_damage_to_a_weights_file_is_noticed(saved: tuple[Path, Any, Any]) -> None:
    path, *_ = saved
    good = path.read_bytes()
    body = 8 + int.from_bytes(good[:8], "little")
    chance = random.Random(0)
    for attempt in range(200):
        bad = bytearray(good)
        if attempt % 2:
            bad = bad[: chance.randrange(len(good))]
        else:
            bad[chance.randrange(body, len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"copy it again"):
            load_weights(path)


def test_foreign_and_missing_files_are_told_apart(tmp_path: Path, saved: tuple[Path, Any, Any]) -> None:
    path, objective, _ = saved
    with pytest.raises(CheckpointError, match=r"no such weights file \(did you mean 'model.safetensors'"):
        load_weights(path.with_name("models.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by ssldet"):
        load_weights(tmp_path / "foreign.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "detr.pth")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(tmp_path / "detr.pth")
    save_weights(path, objective, {"schema": 2})
    with pytest.raises(CheckpointError, match="has schema 2, this ssldet reads 1"):
        load_weights(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "torn.safetensors", metadata={"ssldet": "{"})
    with pytest.raises(CheckpointError, match="its header can't be read"):
        load_weights(tmp_path / "torn.safetensors")


def test_a_state_fits_exactly_or_not_at_all(fakes: ModuleType) -> None:
    objective = fakes.FakeTask().objective(fakes.FakeDetectorConfig().build())
    state = dict(objective.state_dict())
    del state["scale.bias"]
    state["new"] = torch.zeros(1)
    state["detector.box_head.bias"] = torch.zeros(5)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_exactly(objective, state, "x.safetensors")
    assert str(caught.value) == (
        "x.safetensors: does not fit this detector and task: scale.bias is missing; new is unknown here; "
        "detector.box_head.bias has shape [5] instead of [4]"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def counts(report: TransferReport) -> dict[str, tuple[int, int]]:
    return {outcome: report.count(outcome) for outcome in ("loaded", "fresh", "reshaped", "ignored")}  # type: ignore[arg-type]


def test_a_hand_over_accounts_for_every_tensor(fakes: ModuleType) -> None:
    giver, taker = fakes.FakeDetector(91, 3), fakes.FakeDetector(20, 3)
    state = dict(giver.state_dict())
    state["reconstruction.weight"] = torch.zeros(6, 2)
    report = transfer_sections(state, taker, tuple(giver.sections), expects_fresh=("class_head",))
    assert counts(report) == {"loaded": (11, 272), "fresh": (0, 0), "reshaped": (2, 147), "ignored": (1, 12)}
    for name, tensor in taker.state_dict().items():
        assert torch.equal(tensor, state[name]) == (section_of(taker, name) != "class_head")
    assert len(report.summary()) == 8
    assert report.summary()[0] == "loaded   backbone         2 tensors          112 parameters"
    assert "reshaped class_head" in str(report)
    assert json.loads(json.dumps(report.to_json()))["rows"][0]["section"] == "backbone"


@pytest.mark.parametrize("fixed_after", [True, False])
def test_norms_may_be_free_before_and_fixed_after_or_the_other_way_round(fixed_after: bool) -> None:
    def built(frozen_norm: bool) -> DETR:
        backbone = BackboneConfig(name="tiny", frozen_stages=0, frozen_norm=frozen_norm)
        return DETRConfig(backbone=backbone, num_classes=2, num_queries=3, width=8, heads=2, feedforward=4).build()

    giver, taker = built(not fixed_after), built(fixed_after)
    with torch.no_grad():
        for number, value in enumerate(giver.backbone.state_dict().values()):
            value.add_(number + 1)
    state = giver.state_dict()
    report = transfer_sections(state, taker, ("backbone",))
    # Three layers, each with a convolution and a norm of two weights and two statistics; a counter each is let go.
    told = {row.outcome: row.tensors for row in report.rows if row.section == "backbone"}
    assert told == {"loaded": 15, "ignored" if fixed_after else "fresh": 3}
    for name, value in taker.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[f"backbone.{name}"]), name
    del state["backbone.body.layer1.norm.running_mean"]
    with pytest.raises(CheckpointError, match="running_mean is missing"):
        transfer_sections(state, taker, ("backbone",))


@pytest.mark.parametrize("ours", [3, 20, 80, 91, 250])
@pytest.mark.parametrize("theirs", [3, 20, 80, 91, 250])
def test_a_class_head_is_handed_over_row_by_row(fakes: ModuleType, theirs: int, ours: int) -> None:
    giver, taker = fakes.FakeDetector(theirs, 3), fakes.FakeDetector(ours, 3)
    names = [f"class {number}" for number in range(max(theirs, ours) + 5)]
    random.Random(0).shuffle(names)
    rows = match_classes(names[:theirs], sorted(names[-ours:]))
    before = taker.class_head.weight.detach().clone()
    report = transfer_sections(giver.state_dict(), taker, tuple(giver.sections), class_rows=rows)
    for place, row in enumerate([*rows.rows, theirs]):
        expected = before[place] if row is None else giver.class_head.weight[row]
        assert torch.equal(taker.class_head.weight[place], expected)
    assert torch.equal(taker.class_head.bias[-1], giver.class_head.bias[-1])
    assert torch.equal(taker.encoder[0].weight, giver.encoder[0].weight)
    assert counts(report)["reshaped"] == (2, 7 * (ours + 1))
    assert json.loads(json.dumps(report.to_json()))["classes"]["rows"] == dict(zip(rows.ours, rows.rows, strict=True))
    assert str(report).splitlines()[-1] == f"class head: {rows}"


def test_class_names_that_are_not_the_heads_stop_the_hand_over(fakes: ModuleType) -> None:
    giver, taker = fakes.FakeDetector(3, 3), fakes.FakeDetector(2, 3)
    with pytest.raises(CheckpointError, match=r"class_head.weight has 4 rows there, which are not 2 classes"):
        transfer_sections(giver.state_dict(), taker, ("class_head",), class_rows=match_classes(("a", "b"), ("b", "c")))
    with pytest.raises(CheckpointError, match=r"class_head.weight has 3 rows here, which are not 1 classes"):
        transfer_sections(giver.state_dict(), taker, ("class_head",), class_rows=match_classes(("a", "b", "c"), ("b",)))
    giver.class_head = nn.Linear(5, 4)
    with pytest.raises(CheckpointError, match=r"class_head.weight has shape \[4, 5\] instead of \[3, 6\]"):
        transfer_sections(
            giver.state_dict(), taker, ("class_head",), class_rows=match_classes(("a", "b", "c"), ("b", "c"))
        )


def test_sections_that_are_not_handed_over_start_fresh(fakes: ModuleType) -> None:
    giver, taker = fakes.FakeDetector(2, 3), fakes.FakeDetector(2, 3)
    before = {name: tensor.clone() for name, tensor in taker.state_dict().items()}
    state = {name: tensor for name, tensor in giver.state_dict().items() if name.startswith(("backbone", "encoder"))}
    report = transfer_sections(state, taker, ("backbone",))
    assert counts(report) == {"loaded": (2, 112), "fresh": (11, 181), "reshaped": (0, 0), "ignored": (0, 0)}
    assert torch.equal(taker.encoder[0].weight, before["encoder.0.weight"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("encoder.0.bias"), "encoder.0.bias is missing"),
        (lambda state: state.update({"encoder.1.bias": torch.zeros(1)}), "encoder.1.bias is unknown here"),
        (
            lambda state: state.update({"box_head.bias": torch.zeros(5)}),
            r"box_head.bias has shape \[5\] instead of \[4\]",
        ),
        (lambda state: state["box_head.bias"].fill_(float("nan")), "box_head.bias is not finite"),
    ],
)
def test_a_surprise_stops_the_hand_over_before_it_begins(fakes: ModuleType, spoil: Any, message: str) -> None:
    giver, taker = fakes.FakeDetector(2, 3), fakes.FakeDetector(2, 3)
    state: dict[str, Tensor] = {name: tensor.clone() for name, tensor in giver.state_dict().items()}
    spoil(state)
    before = {name: tensor.clone() for name, tensor in taker.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        transfer_sections(state, taker, tuple(giver.sections))
    assert all(torch.equal(tensor, before[name]) for name, tensor in taker.state_dict().items())


def test_a_prefix_in_the_way_loads_nothing_and_says_so(fakes: ModuleType) -> None:
    giver, taker = fakes.FakeDetector(2, 3), fakes.FakeDetector(2, 3)
    state = {f"module.{name}": tensor for name, tensor in giver.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"backbone.weight is missing; .*and 8 more"):
        transfer_sections(state, taker, tuple(giver.sections))
