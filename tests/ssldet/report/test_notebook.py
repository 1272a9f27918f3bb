import json
from pathlib import Path

from ssldet.engine.checkpoint import Row, TransferReport
from ssldet.report.notebook import card
from ssldet.verbs import Trained, compose


def test_text_of_files_is_escaped_and_made_visible() -> None:
    hostile = "<script>alert(1)</script>\x1b[31m"
    shown = card(hostile, text=[hostile], rows={hostile: hostile}, table=[(hostile, 1)], details={hostile: hostile})
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert shown.count("&lt;script&gt;") == 7


def test_a_run_shows_its_choices() -> None:
    shown = compose(pretext="random_query_patch/tiny", backbone="tiny")._repr_html_()
    assert "RandomQueryPatch" in shown
    assert "images a step" in shown
    assert "[optim]" in shown


def test_a_trained_run_shows_its_verdict_and_its_figures(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"status": "finished", "results": {"patch_iou": 0.2, "patch_iou_constant": 0.25}, "steps": 7})
    )
    shown = Trained(tmp_path)._repr_html_()
    assert "No better than one and the same answer" in shown
    assert "0.2500" in shown
    assert "ssldet report" in shown


def test_a_hand_over_is_a_table() -> None:
    rows = [Row(section="encoder", outcome="loaded", tensors=12, parameters=34_567)]
    shown = TransferReport(rows=tuple(rows))._repr_html_()
    for word in ("encoder", "loaded", "34,567", "parameters"):
        assert word in shown
