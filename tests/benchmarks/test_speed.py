"""What was measured as fast stays fast, and rows of parts that are not measured again stay in the file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.timing import speed
from benchmarks.timing.clock import Ratio, compared
from benchmarks.timing.speed import Amount, fallen, measure
from ssldet.errors import ConfigError

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "speed.json"


@pytest.mark.timing
def test_no_ratio_fell_by_a_third() -> None:
    """In a process of its own: what was recorded ran without the shape checks of the tests, which take as long."""
    command = [sys.executable, "-m", "benchmarks", "speed", "--check", "--out", str(RECORDED)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RECORDED.parents[2])
    assert ended.stdout == "nothing fell by a third\n", ended.stderr


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ratios that parts named `one` and `other` measure, one after the other."""
    ratios: list[float] = []

    def of(name: str) -> object:
        def part(amount: Amount) -> Iterator[Ratio]:
            yield compared(name, "the plain way", [(1.0, ratios.pop(0))] * 4)

        return part

    monkeypatch.setattr(speed, "PARTS", {"one": of("one"), "other": of("other")})
    monkeypatch.setattr(speed, "QUICK", ("one",))
    return ratios


def amount(folder: Path) -> Amount:
    return Amount(images=1, repeats=1, folder=folder)


def test_rows_of_other_parts_stay(fakes: list[float], tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    fakes += [4.0, 5.0, 6.0]
    assert [row["ratio"] for row in measure(out, amount(tmp_path))] == [4, 5]
    assert [row["ratio"] for row in measure(out, amount(tmp_path), ["one"])] == [6]
    rows = json.loads(out.read_text())["results"]
    assert [(row["part"], row["ratio"]) for row in rows] == [("one", 6), ("other", 5)]
    with pytest.raises(ConfigError, match=r"no part 'onne'.*one"):
        list(measure(out, amount(tmp_path), ["onne"]))


def test_the_best_of_some_attempts_counts(fakes: list[float], tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    fakes += [6.0, 1.0]
    list(measure(out, amount(tmp_path)))
    fakes[:] = [3.0, 4.9]
    assert fallen(out, amount(tmp_path)) == []
    fakes[:] = [3.0, 3.9, *[2.0] * (speed.ATTEMPTS - 2)]
    assert fallen(out, amount(tmp_path)) == ["one: 3.90 times as fast as the plain way, which was 6.00"]


@pytest.mark.parametrize("noise", [0.85, 1.0, 1.15])
def test_a_fall_by_a_third_is_seen_through_noise(fakes: list[float], tmp_path: Path, noise: float) -> None:
    out = tmp_path / "speed.json"
    fakes += [6.0, 1.0]
    list(measure(out, amount(tmp_path)))
    fakes[:] = [6.0 * noise] * speed.ATTEMPTS
    assert fallen(out, amount(tmp_path)) == []
    fakes[:] = [6.0 * noise * 2 / 3] * speed.ATTEMPTS
    assert len(fallen(out, amount(tmp_path))) == 1


def test_the_command_line_fails_where_something_fell(
    fakes: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    fakes += [6.0, 1.0]
    main(["speed", "--out", str(out)])
    assert "6.00  (6.00 to 6.00)  one, against the plain way" in capsys.readouterr().out
    fakes[:] = [1.0] * speed.ATTEMPTS
    with pytest.raises(SystemExit) as ended:
        main(["speed", "--out", str(out), "--check"])
    assert ended.value.code == 1
    assert "one: 1.00 times as fast" in capsys.readouterr().out
