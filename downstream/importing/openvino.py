"""folder of OpenVINO that ssldet wrote -> `Opened`, for answers alone; needs OpenVINO."""

from downstream.graphs import OPENVINO_GRAPH, openvino_graph
from downstream.importing.graphs import opened
from ssldet.importing.base import Candidate, Importer, Opened


def is_graph(candidate: Candidate) -> bool:
    """Tell whether a folder holds a graph of OpenVINO.

    Args:
        candidate: Any file or folder.
    """
    return candidate.path.is_dir() and (candidate.path / OPENVINO_GRAPH).is_file()


def open_graph(candidate: Candidate) -> Opened:
    """Make the task of a graph, with a detector that runs it.

    Args:
        candidate: A folder that `--to openvino` wrote.

    Raises:
        CheckpointError: It is damaged, was not written by ssldet, or needs more than images.
        SetupError: OpenVINO is not installed.
        ConfigError: Its task is not installed.
    """
    return opened(openvino_graph(candidate.path))


IMPORTER = Importer(
    reads="folders of OpenVINO that ssldet wrote, for answers alone", recognises=is_graph, open=open_graph
)
