"""Who names no recipe gets one that suits start, device, images and labels, and is told why."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from ssldet.source import Source
from ssldet.types import Sample, Targets
from ssldet.verbs import quick_choice
from ssldet.verbs.choosing import resolve
from ssldet.verbs.quick_choice import _like, choose_for_finetuning, choose_for_pretraining


class Counted(Source):
    """So many images, with so many objects each."""

    classes = ("cell",)
    fingerprint = "counted"
    skipped = ()

    def __init__(self, images: int, objects: int) -> None:
        self.images, self.objects = images, objects

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError

    def __len__(self) -> int:
        return self.images

    def targets_of(self, index: int) -> Targets:
        return Targets(boxes=torch.rand(self.objects, 4), labels=torch.zeros(self.objects).long())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*, accelerator: bool, images: int, objects: int = 3) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
        monkeypatch.setattr(quick_choice, "open_source", lambda *_: Counted(images, objects))

    return make


@pytest.mark.parametrize(
    ("accelerator", "images", "recipe", "why"),
    [
        (False, 205, "detection/small", "no accelerator, and there are 205 labelled images with up to 3 objects"),
        (False, 9_000, "detection/small", "no accelerator"),
        (True, 205, "detection/small", "205 labelled images with up to 3 objects are few"),
        (True, 9_000, "detection/r50", "an accelerator and 9,000 labelled images"),
    ],
)
def test_device_and_images_decide(world: Any, accelerator: bool, images: int, recipe: str, why: str) -> None:
    world(accelerator=accelerator, images=images)
    choice = choose_for_finetuning(None, "voc:cells", None)
    assert choice.recipe == recipe
    assert why in choice.why


@pytest.mark.parametrize(
    ("accelerator", "images", "recipe"),
    [(False, 90_000, "small"), (True, 300, "small"), (True, 90_000, "r50")],
)
def test_pretraining_follows_the_device_too(world: Any, accelerator: bool, images: int, recipe: str) -> None:
    world(accelerator=accelerator, images=images)
    assert choose_for_pretraining(None, "photos").recipe == f"random_query_patch/{recipe}"


def test_crowded_images_get_more_queries(world: Any) -> None:
    world(accelerator=False, images=20, objects=130)
    choice = choose_for_finetuning(None, "voc:cells", None)
    assert choice.run.detector.num_queries == 130
    assert "hence 130 queries" in choice.why


@pytest.mark.parametrize("name", ["detection/small", "detection/tiny", "detection/r50"])
def test_a_start_gets_the_recipe_that_was_made_for_its_detector(name: str) -> None:
    assert _like(replace(resolve(name).detector, num_classes=1)).recipe == name


def test_a_named_recipe_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    choice = choose_for_finetuning("detection/tiny", "voc:cells", None)
    choice.announce(choice.run)
    assert choice.run == resolve("detection/tiny")
    assert not caplog.text


def test_choice_licence_and_size_are_said(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world(accelerator=False, images=205)
    choice = choose_for_finetuning(None, "voc:cells", None)
    choice.announce(choice.run)
    for words in ("detection/small is taken, because", "--recipe NAME", "licence Apache-2.0", "19 MB"):
        assert words in caplog.text


def test_the_small_recipes_have_one_detector() -> None:
    detectors = [
        replace(resolve(f"{task}/small").detector, num_classes=1)
        for task in ("random_query_patch", "detection", "one_shot")
    ]
    assert detectors[0] == detectors[1] == detectors[2]
