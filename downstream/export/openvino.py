"""objective -> OpenVINO: a folder with the same graph as ONNX, made from it, for Intel's runtime.

Inputs, outputs and metadata are those of `downstream.export.onnx`; `ssldet` stands before the names of the metadata.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from downstream.export.answering import compared
from downstream.export.card import model_card
from downstream.export.graph_use import contract, script, use_of
from downstream.export.onnx import NEEDED, traceable, unfit, write_graph
from downstream.export.proof import ExportReport, refusing, write_proven
from downstream.graphs import OPENVINO_GRAPH, first_line, openvino_graph
from ssldet.errors import CheckpointError
from ssldet.task import Objective

USE = """\
```python
import numpy as np, openvino
graph = openvino.compile_model("{name}/model.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
images = np.zeros((1, {channels}, 480, 640), np.float32)  # in 0..1
padding = np.zeros((1, 480, 640), bool)  # True where a canvas holds no image
found = graph({{"images": images, "padding": padding}})
logits, boxes = found["logits"], found["boxes"]
```

{contract}

`predict.py` in the folder, if it is there, does all of it: `python {name}/predict.py IMAGE`."""


@refusing(lambda detector, _: unfit(detector), any_channels=True)
def export(objective: Objective, info: Mapping[str, Any], out: Path) -> ExportReport:
    """Write a detector as a folder of OpenVINO, and prove it by running both on batches of several sizes.

    Args:
        objective: As for `downstream.export.onnx.export`.
        info: Likewise.
        out: Folder to create.

    Raises:
        ConfigError: The folder exists.
        CheckpointError: The detector can't be traced or converted, or the graph's answers differ.
        SetupError: A package is missing, or the folder can't be written.
    """
    detector = objective.detector
    with traceable(detector, out, (*NEEDED, "openvino"), "openvino") as answering:

        def write(folder: Path) -> None:
            folder.mkdir()
            with tempfile.TemporaryDirectory(prefix="ssldet-onnx-") as passing:
                exact = Path(passing, "model.onnx")
                write_graph(answering, info, exact)
                convert(exact, contract(info, detector), folder)
            if program := script(info, detector, OPENVINO_GRAPH, "openvino"):
                (folder / "predict.py").write_text(program, encoding="utf-8")

        return write_proven(
            out,
            write,
            lambda folder: compared(answering, openvino_graph(folder), out.name),
            model_card(objective, info, use_of(USE, out.name, info, detector)),
        )


def convert(exact: Path, metadata: Mapping[str, Any], folder: Path) -> None:
    """Write an ONNX graph as a graph of OpenVINO, all numbers in 32 bits.

    Args:
        exact: The graph.
        metadata: What the new graph says of its use, as plain values by name.
        folder: An existing folder.

    Raises:
        CheckpointError: OpenVINO can't convert it.
    """
    import openvino  # here, because of what it takes to import

    try:
        model = openvino.convert_model(exact)
        for name, value in metadata.items():
            model.set_rt_info(json.dumps(value), ["ssldet", name])
        openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)
    except Exception as error:  # OpenVINO's own classes derive from nothing else
        raise CheckpointError(f"{folder.name}: OpenVINO can't convert its graph ({first_line(error)})") from error
