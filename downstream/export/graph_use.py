"""what a file states of its model -> how its ONNX graph is fed and read: in words, as metadata, and as a script."""

from collections.abc import Mapping
from typing import Any

from ssldet.data.bands import RGB
from ssldet.data.geometry import EvaluationSize
from ssldet.data.images import BACKDROP
from ssldet.detectors.base import Detector
from ssldet.errors import ConfigError
from ssldet.recipe import from_document
from ssldet.task import Task

SIZES = {
    "detr": """\
    side = {short} if high / low * {short} <= {max_size} else max(1, round({max_size} * low / high))
    size = (side, int(side * height / width)) if width < height else (int(side * width / height), side)""",
    "transformers": """\
    exact = {short} if high / low * {short} <= {max_size} else {max_size} * low / high
    side = max(1, round(exact))
    size = (side, int(exact * height / width)) if width < height else (int(exact * width / height), side)""",
    "fixed": """\
    size = ({columns}, {rows})""",
    "original": """\
    size = (width, height)""",
}
"""Rule of resizing -> the lines that compute width and height of the graph's input."""
SCORES = {
    "softmax": """\
    shares = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    scores = (shares / shares.sum(-1, keepdims=True))[:, :-1]  # the last row stands for "no object"
    queries, labels = np.arange(len(scores)), scores.argmax(-1)""",
    "sigmoid": """\
    scores = 1 / (1 + np.exp(-logits[0]))
    queries, labels = np.divmod(np.argsort(-scores, axis=None, kind="stable")[:{most}], scores.shape[1])""",
}
"""How class logits are read -> the lines that make detections of them."""
SCRIPT = '''\
"""Detect objects by the graph beside this file: python THIS_FILE IMAGE …; needs {package}, numpy and pillow."""

import json
import sys
from pathlib import Path

import numpy as np
import {package}
from PIL import Image, ImageOps

{load}
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I;16"):  # Pillow's own conversion would cut off at 255
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, {backdrop}), image.convert("RGBA"))
    image = image.convert("RGB")
    (width, height), low, high = image.size, min(image.size), max(image.size)
{size}
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)[None] / 255
    padding = np.zeros((1, size[1], size[0]), bool)  # true where a canvas holds no image
{run}
{scores}
    for query, label in zip(queries.tolist(), labels.tolist()):
        x, y, w, h = (boxes[0, query] * [width, height, width, height]).tolist()  # centre and sides, in pixels
        row = {{"image": path, "category": classes[label] if classes else label, "score": float(scores[query, label])}}
        print(json.dumps(row | {{"bbox": [x - w / 2, y - h / 2, w, h]}}))
'''
RUNTIMES = {
    "onnxruntime": {
        "load": """\
session = onnxruntime.InferenceSession(Path(__file__).with_name({name!r}))
classes = json.loads(session.get_modelmeta().custom_metadata_map["ssldet.classes"])""",
        "run": """\
    logits, boxes = session.run(["logits", "boxes"], {"images": pixels, "padding": padding})""",
    },
    "openvino": {
        "load": """\
model = openvino.Core().read_model(Path(__file__).with_name({name!r}))
graph = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
classes = json.loads(model.get_rt_info(["ssldet", "classes"]).value)""",
        "run": """\
    found = graph({"images": pixels, "padding": padding})
    logits, boxes = found["logits"], found["boxes"]""",
    },
}
"""Package that runs a graph -> the lines that open it, and those that run it."""
WORDS = {
    "detr": "short side {short}, or less where the long side would exceed {max_size}, rounded as DETR's authors do",
    "transformers": "short side {short}, or less where the long side would exceed {max_size}, as transformers round",
    "fixed": "{columns} wide and {rows} high, whatever the aspect",
    "within": "the largest size of the same aspect within {columns} by {rows}",
    "original": "the size of the file",
}


def sizing_of(info: Mapping[str, Any]) -> EvaluationSize | None:
    """Return how the model's task resizes images that it answers; `None` where that is not known, or tile by tile.

    Args:
        info: Metadata of the model.
    """
    try:
        views = from_document(Task, info["task"]).views(training=False)  # type: ignore[type-abstract]
    except (KeyError, ConfigError):
        return None
    return views if isinstance(views, EvaluationSize) else None


def contract(info: Mapping[str, Any], detector: Detector) -> dict[str, Any]:
    """Return what the graph's metadata says of its input and output, as plain values.

    Args:
        info: Metadata of the model.
        detector: The detector, which knows how its class logits are read and what images it takes.
    """
    sizing = sizing_of(info)
    resize = {} if sizing is None else {"resize": vars(sizing) | {"size": list(sizing.size), "filter": "bilinear"}}
    return {
        "classes": info.get("classes", []),
        "category_ids": info.get("category_ids", []),
        "channels": detector.in_channels,
        "pixels": f"{_pixels(detector)} in 0..1; the graph itself subtracts the mean and divides by the deviation",
        "boxes": "centre x, centre y, width, height, as shares of the image",
        **({"task": info["task"]} if "task" in info else {}),
        **resize,
        **detector.scores.described(),
    }


def in_words(info: Mapping[str, Any], detector: Detector) -> str:
    """Return the same as a Markdown list for the model card.

    Args:
        info: Metadata of the model.
        detector: The detector, which knows how its class logits are read and what images it takes.
    """
    sizing, said = sizing_of(info), detector.scores.described()
    size = "any" if sizing is None else WORDS[sizing.rule].format(**_numbers(sizing))
    read = (
        'a softmax over classes and, last, "no object"; every query is a detection'
        if said["class_scores"] == "softmax"
        else f"a sigmoid per class; the {said['most_detections']} likeliest pairs of query and class are detections"
    )
    return "\n".join(
        [
            f"- Size of an image: {size}; bilinear, with antialiasing",
            f"- Pixels: {_pixels(detector)} in 0..1; the graph normalises them itself",
            f"- `logits`: {read}; nothing is suppressed",
            "- `boxes`: centre x, centre y, width, height, as shares of the image",
            "- The graph's metadata say the same under names that begin with `ssldet.`",
        ]
    )


def use_of(template: str, name: str, info: Mapping[str, Any], detector: Detector) -> str:
    """Return how a graph is used, for the model card.

    Args:
        template: Holds `{name}`, `{channels}` and `{contract}`.
        name: Name of the graph's file or folder.
        info: Metadata of the model.
        detector: The detector, which knows what images it takes.
    """
    return template.format(name=name, channels=detector.in_channels, contract=in_words(info, detector))


def script(info: Mapping[str, Any], detector: Detector, name: str, package: str = "onnxruntime") -> str:
    """Return a Python program that detects objects with the graph alone; empty where its input is not known.

    Args:
        info: Metadata of the model.
        detector: The detector, which knows how its class logits are read and what images it takes.
        name: Name of the graph's file; the script lies beside it.
        package: What runs the graph: `onnxruntime` or `openvino`.
    """
    sizing, said = sizing_of(info), detector.scores.described()
    if sizing is None or sizing.rule not in SIZES or detector.in_channels != RGB:
        return ""
    return SCRIPT.format(
        package=package,
        backdrop=(*BACKDROP, 255),
        load=RUNTIMES[package]["load"].format(name=name),
        run=RUNTIMES[package]["run"],
        size=SIZES[sizing.rule].format(**_numbers(sizing)),
        scores=SCORES[said["class_scores"]].format(most=said.get("most_detections")),
    )


def _pixels(detector: Detector) -> str:
    return "RGB" if detector.in_channels == RGB else f"{detector.in_channels} channels"


def _numbers(sizing: EvaluationSize) -> dict[str, int]:
    rows, columns = sizing.size or (0, 0)
    return {"short": sizing.short, "max_size": sizing.max_size, "rows": rows, "columns": columns}
