"""The real agent of torchrun, with two ranks on the CPU: a run, a kill, and a resume on another number of ranks."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

SET = {
    "data.batch_size": 4, "data.workers": 0, "health": 0, "device": "cpu", "data.held_out": 0,
    "checkpoint.every_steps": 2, "detector.feedforward": 32, "detector.decoder_layers": 1, "log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        pixels = torch.randint(0, 256, (48, 56, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def command(*words: str) -> None:
    """`ssldet` with these words, in a process that has imported most of what it needs."""
    from ssldet import cli

    torch.set_num_threads(1)
    cli.main(words)


def as_two(*words: str, killed: str = "") -> None:
    """`torchrun --nproc-per-node 2 -m ssldet …`; one rank may be killed as soon as a file is there."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    signal.alarm(200)  # it starts processes of its own, which takes time on a busy machine
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="fork", monitor_interval=0.1,
    )  # fmt: skip
    elastic_launch(config, rank_of)(words, killed)


def rank_of(words: tuple[str, ...], killed: str) -> None:
    """What the agent starts; rank 1 ends in the middle of a step, where that is asked for."""
    if killed and os.environ["RANK"] == "1":
        from ssldet.engine import loop

        begin = loop.chance.begin_step

        def begin_or_die(seed: int, step: int, part: int) -> None:
            if Path(killed).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            begin(seed, step, part)

        loop.chance.begin_step = begin_or_die  # in this process alone, which has been forked
    command(*words)


def words_for(photos: Path, out: Path, steps: int) -> list[str]:
    fields = [f"{path}={value}" for path, value in {**SET, "budget.steps": steps}.items()]
    return ["pretrain", str(photos), "--recipe", "random_query_patch/tiny", "--out", str(out), "--set", *fields]


@pytest.mark.slow
def test_torchrun_trains_is_killed_and_goes_on_with_one_process(
    photos: Path, tmp_path: Path, fork: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    from ssldet.engine.folder import RunFolder

    command(*words_for(photos, tmp_path / "one", 6))
    assert "CPU: 4 images on it, precision 32" in capfd.readouterr().err
    checkpoint = tmp_path / "two" / "checkpoints" / "step-000002.ckpt"
    broken = fork(lambda: as_two(*words_for(photos, tmp_path / "two", 6), killed=str(checkpoint)))
    assert broken.wait() == 1
    assert RunFolder(tmp_path / "two").status()["status"] == "failed"
    said = capfd.readouterr().err
    assert "2 processes on the CPU: 2 images on each, precision 32" in said
    assert "local_rank: 1" in said  # the agent's word
    command("pretrain", "--resume", str(tmp_path / "two"))
    one, two = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-3
    assert fork(lambda: as_two("pretrain", "--resume", str(tmp_path / "one"), "--steps", "8")).wait() == 0
    assert RunFolder(tmp_path / "one").status()["status"] == "finished"


@pytest.mark.slow
def test_ranks_without_a_run_folder_end_with_one_line(
    photos: Path, tmp_path: Path, fork: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in words_for(photos, tmp_path, 2) if word not in {"--out", str(tmp_path)}]
    assert fork(lambda: as_two(*words)).wait() == 1
    told = [line for line in capfd.readouterr().err.splitlines() if "error:" in line.split("|")[0][:16]]
    assert told == [
        "error: processes that a launcher starts side by side can't agree on a run folder; name it by --out"
    ]
