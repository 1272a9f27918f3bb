"""The page about sources runs as printed, on a set of two images."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssldet import registry
from ssldet.data.images import ImageRules
from ssldet.data.sources import open_source
from ssldet.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_source.md").read_text(encoding="utf-8")


def test_the_example_keeps_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_set").mkdir()
    rows = [{"file": "a.png", "boxes": [[3, 2, 30, 20], [0, 0, 9, 8]], "labels": [1, 0]}]
    rows.append({"file": "b.png", "boxes": [], "labels": []})
    for row, size in zip(rows, ((40, 24), (20, 31)), strict=True):
        Image.new("RGB", size).save(tmp_path / "my_set" / str(row["file"]))
    (tmp_path / "my_set" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    module: dict[str, Any] = {"__name__": "__main__"}
    monkeypatch.setattr("__main__.MySource", None, raising=False)
    example, check, laws = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(example, "example", "exec", dont_inherit=True), module)
    monkeypatch.setattr("__main__.MySource", module["MySource"], raising=False)  # where pickle looks for it
    exec(check, module)
    exec(laws, module)
    for law in module["SOURCE_LAWS"]:
        module["test_law"](law)

    monkeypatch.setattr(registry, "names", lambda group: ["mine"])
    monkeypatch.setattr(registry, "find", lambda group, name: module["open_mine"])
    opened = open_source(["mine:my_set/rows.jsonl"], ImageRules())
    assert [len(opened[index].targets) for index in range(2)] == [2, 0]
    with pytest.raises(DataError, match="carries no masks"):
        open_source(["mine:my_set/rows.jsonl"], ImageRules(), masks=True)
