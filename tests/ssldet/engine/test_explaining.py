import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssldet.engine.explaining import explain
from ssldet.engine.folder import RunFolder
from ssldet.findings import Example, Findings
from ssldet.source import Source
from ssldet.types import Sample, Targets


class _Source(Source):
    keys = ("a", "b")
    classes = ("ace",)
    fingerprint = "two"

    skipped = ()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        nothing = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        image = torch.zeros((3, 30, 40), dtype=torch.uint8)
        return Sample(image=image, targets=nothing, key=self.keys[index], original_size=(30, 40))


class _Evaluator:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def update(self, answers: list[Any], batch: Any, /) -> None: ...

    def results(self) -> dict[str, Any]:
        return {}

    def findings(self) -> Findings:
        if self.error is not None:
            raise self.error
        boxes = (1.0, 1.0, 9.0, 9.0)
        examples = [Example(outcome="missed", key=key, name="ace", object=boxes) for key in ("b", "gone")]
        return Findings(figures={"objects": 2}, examples=examples)


def test_findings_and_pictures_are_written_into_the_run_folder(tmp_path: Path) -> None:
    explain(_Source(), RunFolder(tmp_path), _Evaluator())
    told = json.loads((tmp_path / "findings.json").read_text())
    assert told["objects"] == 2
    assert [row.get("picture") for row in told["examples"]] == ["00-missed.png", None]
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["00-missed.png"]


def test_what_a_report_needs_never_ends_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    explain(_Source(), RunFolder(tmp_path), _Evaluator(OSError(28, "No space left on device")))
    assert "the report goes without findings: OSError" in caplog.text
    assert not list(tmp_path.iterdir())
