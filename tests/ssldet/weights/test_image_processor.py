"""Image processors of transformers: what they say is followed as transformers follows it, or refused by name."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from downstream.detection import Detection
from ssldet.data.geometry import EvaluationSize, short_side_size, transformers_size
from ssldet.errors import CheckpointError
from ssldet.nn.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssldet.recipe import check
from ssldet.types import Sample, Targets
from ssldet.weights.image_processor import Processor, document_of, processor_from

PLAIN = {
    "image_processor_type": "DetrImageProcessor",
    "format": "coco_detection",
    "do_resize": True,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_std": list(IMAGENET_STD),
    "do_pad": True,
    "do_convert_annotations": True,
}
OLD = {"feature_extractor_type": "DetrFeatureExtractor", "size": 512, "max_size": 900, "do_normalize": True}
FIXED = Processor(rule="fixed", short_side=288, long_side=320, size=(320, 288))
SIZES: list[Any] = [
    {"shortest_edge": 48, "longest_edge": 70},
    {"shortest_edge": 31, "longest_edge": 333},
    {"shortest_edge": 60, "longest_edge": 40},
    {"height": 40, "width": 56},
    {"max_height": 50, "max_width": 44},
    [24, 33],
    40,
]


def read(**changes: Any) -> Processor:
    stated = {name: value for name, value in (PLAIN | changes).items() if value != "left out"}
    return processor_from(stated, IMAGENET_MEAN, IMAGENET_STD, Path("p.json"))


def sample(image: torch.Tensor) -> Sample:
    nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=nothing, key="a", original_size=tuple(image.shape[1:]))


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Processor(short_side=800, long_side=1333)),
        ({"size": "left out"}, Processor(short_side=800, long_side=1333)),
        ({"size": None, "do_resize": None}, Processor(short_side=800, long_side=1333)),
        ({"size": {"shortest_edge": 800, "longest_edge": 600}}, Processor(short_side=600, long_side=600)),
        (
            {"size": {"height": 320, "width": 288}},
            Processor(rule="fixed", short_side=288, long_side=320, size=(320, 288)),
        ),
        ({"size": [320, 288]}, FIXED),
        (
            {"size": {"max_height": 480, "max_width": 640}},
            Processor(rule="within", short_side=480, long_side=640, size=(480, 640)),
        ),
        ({"size": 512}, Processor(short_side=512, long_side=1333)),
        ({"size": 512, "max_size": 900}, Processor(short_side=512, long_side=900)),
        ({"do_resize": False}, Processor(rule="original")),
        ({"do_pad": False, "do_convert_annotations": False, "format": "coco_panoptic"}, Processor()),
        ({"image_processor_type": "DeformableDetrImageProcessorFast", "crop_size": None, "_odd": [1]}, Processor()),
    ],
)
def test_what_is_followed(changes: dict[str, Any], expected: Processor) -> None:
    assert read(**changes) == expected
    task = Detection(
        eval_scale=expected.short_side, max_size=expected.long_side, eval_rule=expected.rule, eval_size=expected.size,
        scales=(expected.short_side,),
    )  # fmt: skip
    check(task)
    assert task.views(training=False) == expected.sized()


def test_a_processor_of_the_first_versions() -> None:
    assert processor_from(OLD, IMAGENET_MEAN, IMAGENET_STD, Path("p")) == Processor(short_side=512, long_side=900)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_normalize": False}, "do_normalize is False, but images are normalised here; use transformers"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"rescale_factor": 1 / 127.5}, r"rescale_factor is 0\.0078"),
        ({"rescale_factor": 1}, "rescale_factor is 1,"),
        ({"resample": 3}, "resample is 3, but images are resized by filter 2"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0\.5"),
        ({"image_std": [0.5, 0.5, 0.5]}, r"image_std is \[0\.5"),
        ({"pad_size": {"height": 480, "width": 480}}, "pad_size is"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"do_convert_rgb": False}, "do_convert_rgb is False"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True, and ssldet does not know what that changes"),
        ({"image_processor_type": "YolosImageProcessor"}, "image_processor_type is 'YolosImageProcessor'"),
        ({"size": {"shortest_edge": 480}}, "it must hold shortest_edge and longest_edge"),
        ({"size": {"longest_edge": 480}}, "it must hold shortest_edge and longest_edge"),
        ({"size": {"height": 480}}, "must hold"),
        ({"size": {}}, "must hold"),
        ({"size": "800"}, "must hold"),
        ({"size": {"shortest_edge": 10**9, "longest_edge": 10**9}}, "from 8 to 10000 pixels"),
        ({"size": {"shortest_edge": True, "longest_edge": 1333}}, "shortest_edge must be from 8"),
        ({"size": 480.5}, "from 8 to 10000 pixels"),
        ({"do_resize": "no"}, "do_resize is 'no', neither true nor false"),
    ],
)
def test_what_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^p\.json: .*{message}"):
        read(**changes)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(CheckpointError) as caught:
        read(do_normalize=False, resample=0, size={"shortest_edge": 3, "longest_edge": 9})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["DetrImageProcessor", "DeformableDetrImageProcessor"])
def test_sizes_are_those_of_transformers(transformers: Any, size: Any, kind: str) -> None:
    theirs, ours = getattr(transformers, kind)(size=size), read(size=size).sized()
    chance = random.Random(0)
    images = [(351, 97), (97, 351), (1000, 211), (40, 40), (48, 70), (60, 61)]
    images += [(chance.randint(20, 160), chance.randint(20, 160)) for _ in range(60)]
    for height, width in images:
        answer = theirs(images=np.zeros((height, width, 3), dtype=np.uint8), return_tensors="pt")
        assert ours.of((height, width)) == tuple(answer["pixel_values"].shape[2:]), (height, width)


def test_sizes_at_the_scale_of_use_are_those_of_transformers(transformers: Any) -> None:
    theirs = pytest.importorskip("transformers.image_transforms").get_size_with_aspect_ratio
    chance = random.Random(1)
    for _ in range(20_000):
        image, short = (chance.randint(1, 3000), chance.randint(1, 3000)), chance.randint(8, 1000)
        limit = chance.randint(short, 1500)
        expected = theirs(image, short, limit)
        assert transformers_size(image, short, limit) == expected or min(expected) == 0
        assert read(size={"shortest_edge": short, "longest_edge": limit}).sized().of(image) == expected or not min(
            expected
        )


def test_pixels_are_those_of_transformers(transformers: Any) -> None:
    image = torch.randint(0, 256, (3, 51, 97), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    for size in SIZES:
        theirs = transformers.DetrImageProcessor(size=size)(images=image.numpy(), return_tensors="pt")
        resized = read(size=size).sized()(sample(image), torch.Generator()).image
        assert torch.allclose((resized / 255 - mean) / std, theirs["pixel_values"][0], atol=1e-5)


def test_where_the_long_side_limits_detrs_own_rule_rounds_otherwise() -> None:
    assert short_side_size((351, 97), 200, 333) == (332, 92)
    assert transformers_size((351, 97), 200, 333) == (333, 92)
    assert (short_side_size((1000, 211), 200, 333), transformers_size((1000, 211), 200, 333)) == ((331, 70), (333, 70))


@pytest.mark.parametrize("rule", ["transformers", "fixed", "within", "original"])
def test_what_is_written_is_read_back(rule: Any) -> None:
    size = (64, 96) if rule in {"fixed", "within"} else ()
    written = document_of(rule, 64, 96, size)
    found = processor_from(json.loads(json.dumps(PLAIN | written)), IMAGENET_MEAN, IMAGENET_STD, Path("p"))
    assert found.sized().of((30, 70)) == EvaluationSize(rule, 64, 96, size).of((30, 70))
    assert found.rule == rule


def test_the_task_refuses_sizes_that_do_not_fit_its_rule() -> None:
    assert re.search("eval_size: .* must be empty", Detection(eval_size=(32, 32)).problems()[0])
    assert "a height and a width" in Detection(eval_rule="fixed").problems()[0]
    assert "a height and a width" in Detection(eval_rule="within", eval_size=(32, 4)).problems()[0]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hw", (320, 320)),
        ("max", "pad_size is"),
        ("nonorm", "do_normalize is"),
        ("noresize", (97, 351)),
        ("old", (249, 900)),
        ("shortonly", "size is"),
    ],
)
def test_the_cases(cases: Path, name: str, answer: Any) -> None:
    stated = json.loads((cases / "63_hf_size" / f"{name}_preprocessor_config.json").read_text())
    if isinstance(answer, str):
        with pytest.raises(CheckpointError, match=answer):
            processor_from(stated, IMAGENET_MEAN, IMAGENET_STD, Path("p"))
    else:
        assert processor_from(stated, IMAGENET_MEAN, IMAGENET_STD, Path("p")).sized().of((97, 351)) == answer
