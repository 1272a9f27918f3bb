"""Two processes that act as one."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

Train = Callable[..., dict[str, Any]]


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(
    tmp_path: Path, fakes: ModuleType, train: Train, two_ranks: Callable[..., Any]
) -> None:
    # Without dropout, whose draws belong to a rank, two half batches make the gradient of the whole one.
    def calm(run: Any) -> Any:
        torch.manual_seed(0)
        objective = run.task.objective(run.detector.build())
        for module in objective.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return objective

    run = fakes.a_run(data__val=("fake:5",))
    expected = train(tmp_path / "one", run, objective=calm(run))
    ranks = two_ranks(lambda: train(tmp_path / "two", run, objective=calm(run)))
    assert [rank.wait() for rank in ranks] == [0, 0]
    from ssldet.engine.folder import RunFolder

    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert two.status()["results"]["images"] == 5
    assert two.status()["results"]["score"] == pytest.approx(expected["score"], rel=1e-4)
    losses = [[line["loss"] for line in folder.metrics() if line["kind"] == "train"] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rank_that_has_no_loss_leaves_no_other_waiting(
    tmp_path: Path, fakes: ModuleType, train: Train, two_ranks: Callable[..., Any], accumulate: int
) -> None:
    from ssldet.engine.folder import RunFolder

    task = fakes.FakeTask(refuse="image-3")
    run = fakes.a_run(task=task, data__train=("fake:40",), budget__steps=10, optim__accumulate=accumulate)
    ranks = two_ranks(lambda: train(tmp_path / "a", run))
    assert [rank.wait() for rank in ranks] == [0, 0]
    folder = RunFolder(tmp_path / "a")
    assert folder.status()["skipped_steps"] == 1
    reasons = {json.loads(path.read_text())["reason"] for path in folder.captures.iterdir()}
    assert reasons == {"cost of layer 0 is not finite", "gradient norm is nan, by this rank's gradient or another's"}


@pytest.mark.slow
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_a_signal_to_some_ranks_stops_all_of_them(
    tmp_path: Path, fakes: ModuleType, train: Train, two_ranks: Callable[..., Any], which: tuple[int, ...]
) -> None:
    from ssldet.engine.steps import Checkpoints

    record = tmp_path / "record.txt"
    run = fakes.a_run(task=fakes.FakeTask(record=str(record)), budget__steps=50_000, checkpoint__every_steps=50_000)
    ranks = two_ranks(lambda: train(tmp_path / "a", run))
    while not record.exists() or len(record.read_text().splitlines()) < 8:
        assert not any(rank.ended() for rank in ranks)
        time.sleep(0.01)
    for number in which:
        ranks[number].kill(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [75, 75]
    found = Checkpoints(tmp_path / "a" / "checkpoints").newest()
    assert found is not None
    assert 2 * found.step == len(record.read_text().splitlines())
