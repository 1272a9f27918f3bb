"""objective -> ONNX: the detector as a graph for any runtime, with any number and size of images.

Inputs: `images`, B 3 H W, RGB in 0..1, not yet normalised; `padding`, B H W, true where the canvas holds no image.
Outputs: `logits`, B Q C; `boxes`, B Q 4, normalised cxcywh of the valid image; if the detector has a mask head,
`masks`, B Q h w, logits on the canvas. Logits are read by a softmax whose last class is "no object", and every query is
a detection; or, as with Deformable DETR, by a sigmoid per class, and the likeliest pairs of a query and a class are
detections. The graph's metadata says which (`ssldet.class_scores`), how many pairs (`ssldet.most_detections`), and how
images are resized (`ssldet.resize`); a script beside the file does what it says.

The weights of `onnx-int8` have 8 bits. Its graph is made from one that was proven, and answers a little differently.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from downstream.export.answering import ALLOWED_DIFFERENCE, SHAPES, Answering, batch, compared
from downstream.export.card import model_card
from downstream.export.graph_use import contract, script, use_of
from downstream.export.proof import ExportReport, refusing, write_proven
from downstream.export.tracing import silence, traceable_padding
from downstream.graphs import PREFIX, first_line, onnx_graph
from ssldet.detectors.base import Detector
from ssldet.errors import CheckpointError, SetupError
from ssldet.task import Objective

ANY_DIFFERENCE = sys.float_info.max
"""Where weights are rounded: no difference but infinity is an error, since AP measures whether answers still do."""
UNTRACEABLE = ("SwinTransformer", "SwinTransformerV2")
"""Networks whose windows depend on the size of the image in such a way that tracing fails only after hours."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")
ROUNDED = "its weights have 8 bits, which changes answers; --data LABELLED measures by how much"
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
    return _export(objective, info, out, write_graph)


@refusing(lambda detector, _: unfit(detector), any_channels=True)
def export_int8(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector as an ONNX graph whose weights have 8 bits; the graph that it is made from is proven first.

    Args:
        objective: As for `export`.
        info: Likewise.
        out: Likewise.

    Raises:
        ConfigError: As `export`.
        CheckpointError: As `export`; or the graph fails once it is rounded.
        SetupError: As `export`.
    """
    return _export(objective, info, out, write_rounded, allowed=ANY_DIFFERENCE, remark=ROUNDED)


def _export(
    objective: Objective,
    info: Mapping[str, Any],
    out: Path,
    write: Callable[[Answering, Mapping[str, Any], Path], None],
    *,
    allowed: float = ALLOWED_DIFFERENCE,
    remark: str = "",
) -> ExportReport:
    detector = objective.detector
    program = script(info, detector, out.name)
    with traceable(detector, out, NEEDED, "onnx") as answering:
        return write_proven(
            out,
            lambda path: write(answering, info, path),
            lambda path: compared(answering, onnx_graph(path), out.name, allowed, remark),
            model_card(objective, info, use_of(USE, out.name, info, detector)),
            {".py": program.encode()} if program else {},
        )


@contextmanager
def traceable(detector: Detector, out: Path, needed: Sequence[str], extra: str) -> Iterator[Answering]:
    """Give a detector as what a graph computes, on the CPU and in evaluation mode; it is put back afterwards.

    Args:
        detector: The detector.
        out: What is written, for messages.
        needed: Packages that are needed.
        extra: Extra of ssldet that brings them.

    Raises:
        SetupError: A package is missing.
        CheckpointError: The detector is known to be untraceable.
    """
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise SetupError(f"{out.name}: needs {' and '.join(missing)}; pip install 'ssldet[{extra}]'")
    if reasons := unfit(detector):
        raise CheckpointError(f"{out.name}: {'; '.join(reasons)}")
    was_training, device = detector.training, next(detector.parameters()).device
    try:
        yield Answering(detector).to("cpu").eval()
    finally:
        detector.to(device).train(was_training)


def write_graph(answering: Answering, info: Mapping[str, Any], path: Path) -> None:
    """Trace a detector and write its graph, with what its metadata say of its use.

    Args:
        answering: From `traceable`.
        info: Metadata of the model.
        path: File to write.

    Raises:
        CheckpointError: It can't be traced.
    """
    sides = {"images": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}, "padding": {0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO}}
    try:
        with silence(), traceable_padding():
            program = torch.onnx.export(
                answering,
                batch(SHAPES[0], answering.detector.in_channels),
                dynamo=True,
                input_names=list(sides),
                output_names=answering.outputs,
                dynamic_shapes=sides,
                verbose=False,
            )
    # The exporter raises exceptions of any class, depending on the operation that it does not know.
    except Exception as error:
        raise CheckpointError(
            f"{path.name}: this detector can't be written as a graph for images of any size ({first_line(error)}); "
            "detectors with a ResNet can"
        ) from error
    assert program is not None  # only the older exporter returns `None`
    metadata = contract(info, answering.detector)
    program.model.metadata_props.update({f"{PREFIX}{name}": json.dumps(value) for name, value in metadata.items()})
    program.save(path, external_data=False)


def write_rounded(answering: Answering, info: Mapping[str, Any], path: Path) -> None:
    """Write a graph, prove it, and write it again with weights of 8 bits; its input and output stay in 32.

    Args:
        answering: As for `write_graph`.
        info: Likewise.
        path: Likewise.

    Raises:
        CheckpointError: The detector can't be traced, its graph answers differently, or that can't be rounded.
    """
    with tempfile.TemporaryDirectory(prefix="ssldet-onnx-") as folder:
        exact = Path(folder, "model.onnx")
        write_graph(answering, info, exact)
        if not (found := compared(answering, onnx_graph(exact), path.name).difference()) <= ALLOWED_DIFFERENCE:
            raise CheckpointError(f"{path.name}: not written, since its graph in 32 bits differs by {found:.1e}")
        round_weights(exact, path)


def round_weights(exact: Path, path: Path) -> None:
    """Write a graph again with weights of 8 bits.

    Args:
        exact: The graph.
        path: File to write.

    Raises:
        CheckpointError: onnxruntime can't round it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with silence():
            quantize_dynamic(exact, path, weight_type=QuantType.QInt8)
    except OSError:
        raise
    except Exception as error:  # of any class, as above
        raise CheckpointError(f"{path.name}: can't be rounded to 8 bits ({first_line(error)})") from error
