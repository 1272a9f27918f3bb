"""Records: what is asked for is checked first, each is written when it is whole, and those of earlier calls stay."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import recorded
from benchmarks.recorded import Recorder, Row, record
from ssldet.errors import ConfigError


def test_all_that_is_wrong_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        list(record(tmp_path / "r.json", Recorder(folder=tmp_path / "runs"), only=["colapse", "one_shot_cards"]))
    assert raised.value.problems == [
        "--only: no record 'colapse' (did you mean 'collapse'?)",
        "cards: not given; add --data cards=SPECIFICATION",
        "cards_val: not given; add --data cards_val=SPECIFICATION",
    ]
    assert not list(tmp_path.iterdir())


def test_a_record_is_written_when_it_is_whole_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(_: Recorder) -> Iterator[Row]:
        yield {"figure": 1}
        yield {"figure": 2}

    def broken(_: Recorder) -> Iterator[Row]:
        yield {"figure": 3}
        raise ConfigError("no more")

    monkeypatch.setattr(recorded, "RECORDS", {"whole": (rows, ()), "broken": (broken, ())})
    out, recorder = tmp_path / "r.json", Recorder(folder=tmp_path / "runs")
    out.write_text(json.dumps({"earlier": {"rows": [{"figure": 0}]}}))
    with pytest.raises(ConfigError, match="no more"):
        list(record(out, recorder))
    written = json.loads(out.read_text())
    assert {name: entry["rows"] for name, entry in written.items()} == {
        "earlier": [{"figure": 0}],
        "whole": [{"figure": 1}, {"figure": 2}],
    }
    assert written["whole"]["machine"]["threads"] >= 1


@pytest.mark.slow
def test_runs_of_a_record_are_made_by_the_verbs(tmp_path: Path) -> None:
    recorder = Recorder(folder=tmp_path / "runs", most_steps=1)
    made = [row for _, row in record(tmp_path / "r.json", recorder, only=["collapse"])]
    assert len(made) == 8
    assert {row["when"] for row in made} == {"first step", "last step"}
    assert (tmp_path / "runs" / "collapse-0" / "run.json").exists()
    assert json.loads((tmp_path / "r.json").read_text())["collapse"]["rows"] == made
