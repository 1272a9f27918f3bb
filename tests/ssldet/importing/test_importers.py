"""Every kind of file finds the importer that knows it best, and importers of other packages are asked like ours."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from downstream.detection import Detection
from downstream.export.detectron2.checkpoints import export as export_detectron2
from downstream.export.detr import export as export_detr
from downstream.export.huggingface import export as export_huggingface
from downstream.export.safetensors import export as export_safetensors
from downstream.one_shot import OneShot
from pretext.random_query_patch import PatchDetection, RandomQueryPatch
from ssldet import registry
from ssldet.errors import CheckpointError
from ssldet.importing.base import GROUP, Candidate, Importer, Opened, importers
from ssldet.recipe import to_document
from ssldet.registry import find, names
from ssldet.task import Objective, Task
from ssldet.verbs.opening import open_model
from ssldet.weights.detr import to_detr
from tests.models import SMALL_DETR

FOLDED = replace(SMALL_DETR, pre_norm=False)


def objective_of(task: Task) -> Objective:
    return task.objective(FOLDED.build())


def info_of(task: Task) -> dict[str, object]:
    return {"task": to_document(task), "detector": to_document(FOLDED), "classes": list("abcde"), "category_ids": []}


def ours(path: Path) -> None:
    export_safetensors(objective_of(Detection()), info_of(Detection()), path)


def by_detectron2(path: Path) -> None:
    export_detectron2(objective_of(Detection()), info_of(Detection()), path)


def folder(path: Path) -> None:
    export_huggingface(objective_of(Detection()), info_of(Detection()), path)


def authors(path: Path) -> None:
    state = objective_of(Detection()).state_dict()
    torch.save({"model": to_detr(state)}, path)


def authors_pretraining(path: Path) -> None:
    state = objective_of(RandomQueryPatch(num_patches=3)).state_dict()
    torch.save({"model": to_detr(state, PatchDetection.detr_names)}, path)


@pytest.mark.parametrize(
    ("write", "name", "known_to"),
    [
        (ours, "a.safetensors", {"safetensors"}),
        (by_detectron2, "a.safetensors", {"detectron2"}),
        (by_detectron2, "a.pth", {"detectron2"}),
        (folder, "a", {"huggingface"}),
        (authors, "a.pth", {"detr"}),
        (authors_pretraining, "a.pth", {"detr", "updetr"}),
    ],
)
def test_a_file_is_known_to_its_importers_only(tmp_path: Path, write, name: str, known_to: set[str]) -> None:
    write(tmp_path / name)
    candidate = Candidate(tmp_path / name)
    assert {one for one in names(GROUP) if find(GROUP, one).recognises(candidate)} == known_to


def test_our_own_file_is_recognised_without_reading_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours(tmp_path / "a.safetensors")
    monkeypatch.setattr("ssldet.importing.base.read_state", None)
    assert open_model(tmp_path / "a.safetensors").task == Detection()


@pytest.mark.parametrize("rebuilds", [True, False])
def test_what_updetrs_authors_pretrained_opens_as_its_task(tmp_path: Path, rebuilds: bool) -> None:
    objective = objective_of(RandomQueryPatch(num_patches=3, reconstruction=rebuilds))
    state = objective.state_dict()
    torch.save({"model": to_detr(state, objective.detr_names), "args": {"nheads": 4}}, tmp_path / "a.pth")
    opened = open_model(tmp_path / "a.pth")
    assert opened.task == RandomQueryPatch(reconstruction=rebuilds)
    assert (opened.classes, opened.info["category_ids"]) == ((), [])
    back = opened.objective.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(value, back[name]) for name, value in state.items())


def test_the_word_of_a_file_goes_before_what_its_heads_look_like(tmp_path: Path) -> None:
    task = OneShot(unseen=("a",))
    objective = task.objective(replace(FOLDED, num_classes=1).build())
    info = {"task": to_document(task), "classes": ["any"], "category_ids": []}
    export_detr(objective, info, tmp_path / "a.pth")
    opened = open_model(tmp_path / "a.pth")
    assert (opened.task, opened.classes) == (task, ("any",))
    assert torch.equal(opened.objective.patch_queries.projection.weight, objective.patch_queries.projection.weight)


def test_tensors_in_detrs_names_may_lie_in_a_safetensors_file(tmp_path: Path) -> None:
    state = to_detr(objective_of(Detection()).state_dict())
    save_file(state, tmp_path / "a.safetensors", metadata={"args": json.dumps({"nheads": 4})})
    assert isinstance(open_model(tmp_path / "a.safetensors").task, Detection)


def test_heads_that_the_task_does_not_name_are_refused(tmp_path: Path) -> None:
    state = to_detr(objective_of(Detection()).state_dict()) | {"probe.weight": torch.ones(2, 3)}
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: does not fit .*: probe\.weight is unknown here"):
        open_model(tmp_path / "a.pth")


def test_what_nobody_knows_is_refused_with_what_is_known(tmp_path: Path) -> None:
    torch.save({"model": {"body.weight": torch.ones(3)}}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"a\.pth: no importer knows its 1 tensors, such as 'body\.weight'"
    ) as told:
        open_model(tmp_path / "a.pth")
    assert all(find(GROUP, name).reads in str(told.value) for name in names(GROUP))


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"<html>not here</html>")
    with pytest.raises(CheckpointError, match="neither a safetensors nor a torch file"):
        open_model(tmp_path / "a.pth")


OTHERS = Importer(
    reads="numbers (.num)",
    recognises=lambda candidate: candidate.path.suffix == ".num",
    open=lambda candidate: Opened(objective=objective_of(Detection()), task=Detection(), info={"numbers": True}),
)
TAKES_ALL = Importer(reads="all", recognises=lambda candidate: True, open=OTHERS.open, general=True)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """What is installed, and an importer of somebody else's package."""
    entries = list(entry_points(group=GROUP))
    entries += [EntryPoint(name="zz-numbers", value=f"{__name__}:OTHERS", group=GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(entries).select(group=group))
    registry._claims.cache_clear()
    yield entries
    registry._claims.cache_clear()


def test_an_importer_of_another_package_is_asked(shelf: list[EntryPoint], tmp_path: Path) -> None:
    (tmp_path / "a.num").write_text("1 2 3")
    assert open_model(tmp_path / "a.num").info == {"numbers": True}
    torch.save({"model": {"body.weight": torch.ones(3)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"numbers \(\.num\)"):
        open_model(tmp_path / "a.pth")


def test_general_ones_are_asked_last_whatever_their_names(shelf: list[EntryPoint]) -> None:
    shelf.append(EntryPoint(name="aa-all", value=f"{__name__}:TAKES_ALL", group=GROUP))
    registry._claims.cache_clear()
    order = [importer.reads for importer in importers()]
    names = (
        "deformable_detr",
        "detectron2",
        "fp_detr",
        "fp_detr_pretrained",
        "onnx",
        "openvino",
        "safetensors",
        "updetr",
        "zz-numbers",
    )
    special = [find(GROUP, name).reads for name in names]
    assert order == [*special, "all", find(GROUP, "detr").reads, find(GROUP, "huggingface").reads]


def test_one_that_does_not_import_keeps_nobody_from_opening(
    shelf: list[EntryPoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.append(EntryPoint(name="aa-broken", value="no_such_module:IMPORTER", group=GROUP))
    registry._claims.cache_clear()
    ours(tmp_path / "a.safetensors")
    assert open_model(tmp_path / "a.safetensors").task == Detection()
    assert "importer 'aa-broken' (no_such_module:IMPORTER) can't be imported" in caplog.text
