"""JSON objects, one a line."""

from pathlib import Path

from ssldet.jsonlines import finite, read_lines


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"a": 1}\n[2]\n\xff\n\n{"b": 2}')
    assert read_lines(tmp_path / "x") == [{"a": 1}, {"b": 2}]
    assert finite({"a": [1, float("inf")], "b": ({"c": float("nan")},)}) == {"a": [1, None], "b": [{"c": None}]}
