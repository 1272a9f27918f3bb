"""Two ranks, and everything that can befall one of them: both end soon, and say which it was and why."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Work = Callable[[int], object]


class Ranks:
    """Two forked processes with the environment of torchrun, and what they said."""

    def __init__(self, fork: Callable[..., Any], folder: Path) -> None:
        self._fork, self._folder = fork, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.without: tuple[str, ...] = ()
        self.children: list[Any] = []

    def start(self, work: Work, numbers: tuple[int, ...] = (0, 1)) -> "Ranks":
        for number in numbers:
            self.children.append(self._fork(lambda number=number: self._as_rank(number, work)))
        return self

    def _as_rank(self, number: int, work: Work) -> None:
        os.environ |= {
            **{name: str(number) for name in ("RANK", "LOCAL_RANK")},
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_RUN_ID": "test",
        }
        for name in self.without:
            del os.environ[name]
        # A process that waits for a lost rank is ended from beside, and says why here.
        sys.stderr = (self._folder / f"said-{number}").open("a", buffering=1)
        try:
            work(number)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise

    def wait(self) -> tuple[list[int], list[str]]:
        """Return exit codes and errors."""
        codes = [child.wait() for child in self.children]
        places = [self._folder / f"said-{number}" for number in range(len(codes))]
        return codes, [place.read_text() if place.exists() else "" for place in places]


@pytest.fixture
def ranks(fork: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    from ssldet import peers

    for name, value in (("INTERVAL", 0.1), ("SUSPICION", 0.6), ("GRACE", 1.0), ("CONNECTING", 3.0)):
        monkeypatch.setattr(peers, name, value)
    return Ranks(fork, tmp_path)


def status(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return result


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_rank_ends_the_other_which_names_it(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks, which: int
) -> None:
    record = tmp_path / "record.txt"
    run = fakes.a_run(task=fakes.FakeTask(record=str(record)), budget__steps=50_000, checkpoint__every_steps=2)
    ranks.start(lambda _: train(tmp_path / "a", run))
    while len(lines_of(record)) < 8:
        assert not any(rank.ended() for rank in ranks.children)
        time.sleep(0.01)
    begun = time.monotonic()
    ranks.children[which].kill(signal.SIGKILL)
    codes, said = ranks.wait()
    assert time.monotonic() - begun < 15
    assert codes[which] == -signal.SIGKILL
    assert codes[1 - which] == 7
    assert f"rank {which} " in said[1 - which]
    assert "gives no sign of life" in said[1 - which]
    if which == 1:
        assert status(tmp_path / "a")["status"] == "failed"
        assert "rank 1 (process" in status(tmp_path / "a")["reason"]


def broken(number: int) -> Callable[..., Any]:
    """What a view does that fails on one rank."""

    def view(sample: Any, generator: Any) -> Any:
        if os.environ["RANK"] == str(number):
            raise ZeroDivisionError("no area")
        return sample

    return view


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_on_one_rank_is_told_on_the_other(
    tmp_path: Path,
    fakes: ModuleType,
    train: Any,
    ranks: Ranks,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    which: int,
) -> None:
    run = fakes.a_run()
    monkeypatch.setattr(fakes, "noisy", broken(which))
    codes, said = ranks.start(lambda _: train(tmp_path / "a", run)).wait()
    assert codes[which] == 1
    assert codes[1 - which] == 7
    # Rank 0 stays until the others know, so they don't come back from gloo, and their threads end them.
    told = said[1] or capfd.readouterr().err if which == 0 else said[0]
    assert f"rank {which} (process" in told
    assert "failed: no area" in told
    assert status(tmp_path / "a")["status"] == "failed"
    assert "no area" in status(tmp_path / "a")["reason"]


def test_a_matcher_that_refuses_on_one_rank_leaves_nobody_waiting(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The count of boxes is reduced first; then one rank raises where the other goes on to reduce gradients.
    from ssldet.errors import DataError
    from ssldet.ranks import totals

    forward = fakes.FakeObjective.forward

    def compare(self: Any, batch: Any) -> Any:
        totals([float(len(batch.targets))], batch.images.device)
        if os.environ["RANK"] == "1":
            raise DataError("image 0 of the batch has label 9")
        return forward(self, batch)

    monkeypatch.setattr(fakes.FakeObjective, "forward", compare)
    codes, said = ranks.start(lambda _: train(tmp_path / "a", fakes.a_run())).wait()
    assert codes == [7, 3]
    assert "failed: image 0 of the batch has label 9" in said[0]
    assert "label 9" in status(tmp_path / "a")["reason"]


def test_data_that_are_bad_on_one_rank_end_both_before_training(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks
) -> None:
    good, bad = fakes.a_run(), fakes.a_run(data__train=("fake:10:skipped:9",))
    codes, said = ranks.start(lambda number: train(tmp_path / "a", bad if number else good)).wait()
    assert codes == [7, 3]
    assert "rank 1 (process" in said[0]
    assert "images can't be used" in said[0]
    assert status(tmp_path / "a")["status"] == "failed"
    assert "images can't be used" in status(tmp_path / "a")["reason"]


def test_a_rank_that_never_comes_is_named_after_the_timeout(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    monkeypatch.setattr("ssldet.ranks.TIMEOUT", timedelta(seconds=1))
    codes, said = ranks.start(lambda _: train(tmp_path / "a", fakes.a_run()), numbers=(0,)).wait()
    assert codes == [7]
    assert "rank 1 of 2 did not come to 127.0.0.1" in said[0]
    assert "did not come" in status(tmp_path / "a")["reason"]


def test_a_signal_while_waiting_for_a_rank_ends_at_once(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks
) -> None:
    ranks.start(lambda _: train(tmp_path / "a", fakes.a_run()), numbers=(0,))
    while not (tmp_path / "a" / "train.log").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    ranks.children[0].kill(signal.SIGTERM)
    codes, said = ranks.wait()
    assert codes == [75]
    assert "stopped by SIGTERM while waiting for rank 1 of 2" in said[0]
    assert status(tmp_path / "a")["status"] == "stopped"


def test_a_taken_port_is_told_by_both_ranks(tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", ranks.port))
        other.listen()
        codes, said = ranks.start(lambda _: train(tmp_path / "a", fakes.a_run())).wait()
    assert codes == [7, 7]
    assert f"port {ranks.port}, where the ranks meet, can't be opened (Address already in use)" in said[0]
    assert "something else than rank 0 of this run answers" in said[1]
    assert "Address already in use" in status(tmp_path / "a")["reason"]


@pytest.mark.parametrize("without", [("MASTER_ADDR", "MASTER_PORT"), ("LOCAL_WORLD_SIZE",), ("WORLD_SIZE",)])
def test_variables_that_the_launcher_forgot_are_named(
    tmp_path: Path, fakes: ModuleType, ranks: Ranks, without: tuple[str, ...]
) -> None:
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder

    ranks.without = without
    codes, _ = ranks.start(lambda _: fit(fakes.a_run(), RunFolder(tmp_path / "a")), numbers=(1,)).wait()
    assert codes == [7]
    assert (
        f"environment: {', '.join(without)} is not set; start all ranks by a launcher"
        in (tmp_path / "said-1").read_text()
    )
    assert not (tmp_path / "a").exists()


def test_a_rank_that_waits_for_a_lost_one_in_foreign_code_is_ended(
    tmp_path: Path, fakes: ModuleType, train: Any, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As NCCL waits, which does not notice that the other process is gone.
    def view(sample: Any, generator: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise ZeroDivisionError("no area")
        time.sleep(60)

    monkeypatch.setattr(fakes, "noisy", view)
    begun = time.monotonic()
    codes, _ = ranks.start(lambda _: train(tmp_path / "a", fakes.a_run())).wait()
    assert time.monotonic() - begun < 20
    assert codes == [7, 1]
    assert "no area" in status(tmp_path / "a")["reason"]
