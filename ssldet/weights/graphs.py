"""first bytes of a file -> whether it is an ONNX graph, so that every reader of weights can say what such a file is."""

GRAPH_ONLY = (
    "is an exported graph, which answers and holds no weights that could be trained or written again: ssldet predict "
    "and ssldet evaluate take it; name the run or the weights file that it was exported from"
)
"""What every verb says of a graph that it can't use."""
VERSION, NEXT = 0x08, frozenset((0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42))
"""Tags of protocol buffers: the field of the version that begins every ONNX file, and the fields that follow it."""
NEWEST = 32
"""Above any version of the format that is likely to come."""


def begins_a_graph(start: bytes) -> bool:
    """Tell whether a file with these first bytes is an ONNX graph, as far as its beginning tells.

    Args:
        start: Its first bytes, three or more.
    """
    return len(start) >= 3 and start[0] == VERSION and 1 <= start[1] <= NEWEST and start[2] in NEXT
