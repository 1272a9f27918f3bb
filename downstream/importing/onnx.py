"""ONNX graph that ssldet wrote -> `Opened`, for answers alone; needs onnxruntime."""

import contextlib

from downstream.graphs import onnx_graph
from downstream.importing.graphs import opened
from ssldet.importing.base import Candidate, Importer, Opened
from ssldet.regular import open_regular
from ssldet.weights.graphs import begins_a_graph


def is_graph(candidate: Candidate) -> bool:
    """Tell whether a file begins as ONNX files do.

    Args:
        candidate: Any file or folder.
    """
    if candidate.path.is_dir():
        return False
    with contextlib.suppress(OSError), open_regular(candidate.path) as file:
        return begins_a_graph(file.read(3))
    return False


def open_graph(candidate: Candidate) -> Opened:
    """Make the task of a graph, with a detector that runs it.

    Args:
        candidate: An ONNX file.

    Raises:
        CheckpointError: It is damaged, was not written by ssldet, or needs more than images.
        SetupError: onnxruntime is not installed.
        ConfigError: Its task is not installed.
    """
    return opened(onnx_graph(candidate.path))


IMPORTER = Importer(reads="ONNX graphs of ssldet (.onnx), for answers alone", recognises=is_graph, open=open_graph)
