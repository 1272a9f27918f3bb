"""files of ONNX or OpenVINO -> graphs that are ready to run, with the metadata that ssldet wrote into them."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssldet.errors import CheckpointError, SetupError

PREFIX = "ssldet."
"""How the names of our metadata begin."""
AGAIN = "export it again from the run"
OPENVINO_GRAPH = "model.xml"
"""Name of the graph in a folder of OpenVINO; its weights lie beside it."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph that is ready to run on the CPU.

    Attributes:
        path: Its file or folder, for messages.
        metadata: What ssldet wrote into it, as JSON texts by name, without the prefix.
        shapes: Shape of each input and output by name; numbers where they are fixed.
        inputs: Names of its inputs.
        run: `images` and `padding` as arrays -> its outputs by name. Raises exceptions of any class.
    """

    path: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[Any, ...]]
    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def onnx_graph(path: Path) -> Graph:
    """Open an ONNX file by onnxruntime.

    Args:
        path: The file.

    Raises:
        SetupError: onnxruntime is not installed.
        CheckpointError: The file is damaged, or no such graph.
    """
    _require("onnxruntime", path, "an ONNX graph", "onnx")
    import onnxruntime  # here, because of what it takes to import

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own classes derive from nothing else
        raise CheckpointError(
            f"{path}: is no ONNX graph that can run ({first_line(error)}); copy or export it again"
        ) from error
    given, found = session.get_inputs(), [output.name for output in session.get_outputs()]
    return Graph(
        path=path,
        metadata=_ours(session.get_modelmeta().custom_metadata_map),
        shapes={one.name: tuple(one.shape) for one in (*given, *session.get_outputs())},
        inputs=tuple(one.name for one in given),
        run=lambda fed: dict(zip(found, session.run(None, dict(fed)), strict=True)),
    )


def openvino_graph(folder: Path) -> Graph:
    """Open a folder that `--to openvino` wrote, by OpenVINO.

    Args:
        folder: The folder.

    Raises:
        SetupError: OpenVINO is not installed.
        CheckpointError: A file is damaged or missing, or no such graph.
    """
    _require("openvino", folder, "a graph of OpenVINO", "openvino")
    import openvino  # here, because of what it takes to import

    # Other precisions are the default on some processors, and boxes need the digits.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    core = openvino.Core()
    try:
        model = core.read_model(folder / OPENVINO_GRAPH)
        compiled = core.compile_model(model, "CPU", exact)
        stated = model.get_rt_info("ssldet").value if model.has_rt_info("ssldet") else {}
    except Exception as error:  # as above
        raise CheckpointError(
            f"{folder}: holds no graph of OpenVINO that can run ({first_line(error)}); copy or export it again"
        ) from error
    named = {port.get_any_name(): port for port in (*model.inputs, *model.outputs)}
    return Graph(
        path=folder,
        metadata={str(name): str(value) for name, value in stated.items()},
        shapes={name: tuple(_sides(port)) for name, port in named.items()},
        inputs=tuple(port.get_any_name() for port in model.inputs),
        run=lambda fed: {port.get_any_name(): np.array(value) for port, value in compiled(dict(fed)).items()},
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, else its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sides(port: Any) -> list[int | None]:
    return [side.get_length() if side.is_static else None for side in port.get_partial_shape()]


def _ours(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(PREFIX): value for name, value in metadata.items() if name.startswith(PREFIX)}


def _require(package: str, path: Path, what: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise SetupError(f"{path}: {what} runs by {package}; pip install 'ssldet[{extra}]'")
