"""objective -> ONNX: the detector as a graph for any runtime, with any number and size of images.

Inputs: `images`, B 3 H W, RGB in 0..1, not yet normalised; `padding`, B H W, true where the canvas holds no image.
Outputs: `logits`, B Q C; `boxes`, B Q 4, normalised cxcywh of the valid image; if the detector has a mask head,
`masks`, B Q h w, logits on the canvas. Logits are read by a softmax whose last class is "no object", and every query is
a detection; or, as with Deformable DETR, by a sigmoid per class, and the likeliest pairs of a query and a class are
detections. The graph's metadata says which (`ssldet.class_scores`), how many pairs (`ssldet.most_detections`), and how
images are resized (`ssldet.resize`); a script beside the file does what it says.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.export import Dim

from downstream.export.card import model_card
from downstream.export.onnx_use import contract, in_words, script
from downstream.export.proof import Comparison, ExportReport, refusing, write_proven
from downstream.export.tracing import silence, traceable_padding
from ssldet.chance import generator
from ssldet.detectors.base import Detector
from ssldet.errors import CheckpointError, SetupError
from ssldet.task import Objective

ALLOWED_DIFFERENCE = 1e-3
"""Largest difference of a logit or a box: runtimes order and fuse sums differently."""
SHAPES = ((2, 96, 128), (1, 160, 64), (3, 101, 75))
"""Batches whose answers are compared; the first is the one that the graph is traced with."""
UNTRACEABLE = ("SwinTransformer", "SwinTransformerV2")
"""Networks whose windows depend on the size of the image in such a way that tracing fails only after hours."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
USE = """\
```python
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{name}")
images = np.zeros((1, {channels}, 480, 640), np.float32)  # in 0..1
padding = np.zeros((1, 480, 640), bool)  # True where a canvas holds no image
logits, boxes = session.run(["logits", "boxes"], {{"images": images, "padding": padding}})
```

{contract}

The script of the same name beside the file, if there is one, does all of it: `python NAME.py IMAGE`."""


class _Graph(nn.Module):
    """Pixels -> the answers of the last decoder layer."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Tensor, ...]:
        predictions = self.detector(self.detector.normalise(images, padding), padding)
        logits, boxes = predictions.logits[-1], predictions.boxes[-1]
        if predictions.encoded_images is None:
            return logits, boxes
        count, queries = logits.shape[:2]
        every = torch.arange(count * queries, device=logits.device)
        masks = self.detector.masks(predictions, every // queries, every % queries)
        return logits, boxes, masks.view(count, queries, *masks.shape[-2:])

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return ["logits", "boxes", *(["masks"] if "mask_head" in self.detector.sections else [])]


@refusing(lambda detector, _: unfit(detector), any_channels=True)
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector as an ONNX graph, and prove it by running both on batches of several sizes.

    Args:
        objective: The detector inside its task; heads of the task are left out.
        info: Metadata of the model; class names and category ids go into the graph's metadata.
        out: File to create.

    Raises:
        ConfigError: The file exists.
        CheckpointError: The detector can't be traced, or the graph's answers differ.
        SetupError: A package is missing, or the file can't be written.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SetupError(f"ONNX needs {' and '.join(missing)}; pip install 'ssldet[onnx]'")
    detector = objective.detector
    if reasons := unfit(detector):
        raise CheckpointError(f"{out.name}: {'; '.join(reasons)}")
    was_training, device = detector.training, next(detector.parameters()).device
    try:
        graph = _Graph(detector).to("cpu").eval()

        def write(path: Path) -> None:
            _write(graph, info, path)

        def read_back(path: Path) -> Comparison:
            difference = max(_difference(graph, path, shape) for shape in SHAPES)
            return Comparison(ours={}, theirs={}, difference=lambda: difference, allowed=ALLOWED_DIFFERENCE)

        use = USE.format(name=out.name, channels=detector.in_channels, contract=in_words(info, detector))
        program = script(info, detector, out.name)
        beside = {".py": program.encode()} if program else {}
        return write_proven(out, write, read_back, model_card(objective, info, use), beside)
    finally:
        detector.to(device).train(was_training)


def unfit(detector: Detector) -> list[str]:
    """Return the reasons why a detector can't be written as a graph, as far as they are known before it is tried.

    Args:
        detector: The detector to write.
    """
    kinds = {type(module).__name__ for module in detector.modules()} & set(UNTRACEABLE)
    return [
        f"{kind} can't be written as a graph for images of any size; detectors with a ResNet, a ConvNeXt or a plain "
        "ViT can"
        for kind in sorted(kinds)
    ]


def _write(graph: _Graph, info: Mapping[str, Any], path: Path) -> None:
    sides = {"images": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}, "padding": {0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO}}
    try:
        with silence(), traceable_padding():
            program = torch.onnx.export(
                graph,
                _batch(SHAPES[0], graph.detector.in_channels),
                dynamo=True,
                input_names=list(sides),
                output_names=graph.outputs,
                dynamic_shapes=sides,
                verbose=False,
            )
    # The exporter raises exceptions of any class, depending on the operation that it does not know.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path.name}: this detector can't be written as a graph for images of any size ({reason}); detectors with "
            "a ResNet can"
        ) from error
    assert program is not None  # only the older exporter returns `None`
    metadata = contract(info, graph.detector)
    program.model.metadata_props.update({f"ssldet.{name}": json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def _batch(shape: tuple[int, int, int], channels: int) -> tuple[Float[Tensor, "B c H W"], Bool[Tensor, "B H W"]]:
    """Return random images on one canvas, of which the last does not fill it."""
    count, height, width = shape
    padding = torch.zeros(count, height, width, dtype=torch.bool)
    padding[-1, height * 2 // 3 :], padding[-1, :, width * 3 // 4 :] = True, True
    return torch.rand(count, channels, height, width, generator=generator("export", height)), padding


def _difference(graph: _Graph, path: Path, shape: tuple[int, int, int]) -> float:
    import onnxruntime

    count, height, width = shape
    images, padding = _batch(shape, graph.detector.in_channels)
    with torch.no_grad():
        ours = graph(images, padding)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        theirs = session.run(graph.outputs, {"images": images.numpy(), "padding": padding.numpy()})
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path.name}: not written, since its graph can't take {count} images of {height}x{width} ({reason})"
        ) from error
    return max(float((one - torch.from_numpy(other)).abs().max()) for one, other in zip(ours, theirs, strict=True))
