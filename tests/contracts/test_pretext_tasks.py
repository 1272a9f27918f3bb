"""Every registered pretext task under every law, and laws that notice when they are broken."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssldet import testing
from ssldet.engine.run import Run
from ssldet.registry import find, names
from ssldet.task import PretextTask, Task
from ssldet.types import Sample

REFERENCES = Path(__file__).parents[2] / "references.bib"
TASKS = [name for name in names("ssldet.tasks") if issubclass(find("ssldet.tasks", name), PretextTask)]

FLAGSHIP = "random_query_patch"


def small(name: str) -> Run:
    run: Run = find("ssldet.recipes", f"{name}/tiny")()
    return run


def pretext(name: str) -> PretextTask:
    task = small(name).task
    assert isinstance(task, PretextTask)
    return task


def test_the_flagship_is_among_them() -> None:
    assert FLAGSHIP in TASKS


@pytest.mark.parametrize("law", testing.PRETEXT_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", TASKS)
def test_a_pretext_task_keeps_the_law(name: str, law: testing.Law) -> None:
    law(pretext(name), small(name).detector)


@pytest.mark.parametrize("name", TASKS)
def test_the_detector_of_a_registered_task_is_found(name: str) -> None:
    assert testing.tiny_detector(pretext(name)) == small(name).detector


@pytest.mark.parametrize("name", names("ssldet.tasks"))
def test_what_a_task_cites_is_in_the_references(name: str) -> None:
    task: type[Task] = find("ssldet.tasks", name)
    assert re.search(rf"^@\w+{{{re.escape(task.cite)},", REFERENCES.read_text(encoding="utf-8"), re.MULTILINE)


@dataclass(frozen=True)
class Breaking:
    """Views that break one law after another."""

    views: Any
    how: str

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        made: Sample = self.views(sample, generator)
        if self.how == "other chance":
            return replace(made, image=torch.randint(0, 256, made.image.shape, dtype=torch.uint8))
        if self.how == "reads labels":
            return replace(made, image=made.image + len(sample.targets))
        if self.how == "writes":
            sample.image.zero_()
            return made
        return replace(made, targets=replace(made.targets, boxes=made.targets.boxes + 0.5))


@pytest.mark.parametrize(
    ("how", "law", "said"),
    [
        ("other chance", testing.tasks.views_are_a_function_of_the_generator, "not the generator's"),
        ("reads labels", testing.tasks.labels_are_not_read, "depend on the labels"),
        ("writes", testing.tasks.views_leave_the_source_alone, "write into the image"),
        ("moves boxes", testing.tasks.boxes_lie_in_the_image, "outside or is empty"),
    ],
)
def test_broken_views_are_noticed(how: str, law: testing.Law, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = pretext(FLAGSHIP)
    make = type(task).views
    monkeypatch.setattr(type(task), "views", lambda self, *, training=True: Breaking(make(self), how))
    with pytest.raises(AssertionError, match=said):
        law(task, small(FLAGSHIP).detector)


def test_a_gradient_where_none_belongs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    task, detector = pretext(FLAGSHIP), small(FLAGSHIP).detector
    thawed = testing.tasks._objective(task, detector).requires_grad_(True)
    monkeypatch.setattr(testing.tasks, "_objective", lambda *_: thawed)
    monkeypatch.setattr(type(task), "rests", lambda _, section: section != "decoder")
    with pytest.raises(AssertionError, match="gets a gradient"):
        testing.tasks.gradient_reaches_what_trains(task, detector)
