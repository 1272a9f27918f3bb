"""JSON objects, one a line."""

import tracemalloc
from pathlib import Path

from ssldet.jsonlines import each_line, finite, read_lines


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"a": 1}\n[2]\n\xff\n\n{"b": 2}')
    assert read_lines(tmp_path / "x") == list(each_line(tmp_path / "x")) == [{"a": 1}, {"b": 2}]
    assert read_lines(tmp_path / "none") == list(each_line(tmp_path / "none")) == []
    assert finite({"a": [1, float("inf")], "b": ({"c": float("nan")},)}) == {"a": [1, None], "b": [{"c": None}]}


def test_a_long_file_is_gone_through_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"kind": "train", "step": 1, "loss": 0.5}\n' * 20000)
    tracemalloc.start()
    try:
        assert sum(line["step"] for line in each_line(tmp_path / "x")) == 20000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
