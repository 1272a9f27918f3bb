"""Processes that read for another one: they end with it, however it ended and whatever they were doing."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssldet.data import children, parallel
from ssldet.data.loader import training_batches
from tests.processes import running_of
from tests.ssldet.data.test_loader import Numbers


def large(sample, generator):
    """Replace an image by one whose batches fill a pipe, although no tensor is large enough to be shared."""
    del generator
    return replace(sample, image=torch.zeros(3, 64, 64))


def nobody_reads_what_workers_send():
    batches = iter(training_batches(Numbers(11), large, seed=7, batch_size=4, total_steps=50, workers=2))
    next(batches)
    time.sleep(60)


def nobody_asks_for_more():
    for _ in parallel.over_parts(10_000, list):
        time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes of a group are listed by Linux only")
@pytest.mark.parametrize("work", [nobody_reads_what_workers_send, nobody_asks_for_more])
def test_they_end_with_a_process_that_is_killed(work, monkeypatch):
    monkeypatch.setattr(children, "POLL", 0.1)
    monkeypatch.setattr(parallel, "READERS", 2)
    group = os.fork()
    if group == 0:
        os.setpgid(0, 0)
        signal.alarm(60)
        work()
        os._exit(0)
    try:
        until(lambda: len(running_of([group])) >= 3)
        time.sleep(1)  # they fill the pipe, or wait
        os.kill(group, signal.SIGKILL)
        os.waitpid(group, 0)
        assert running_of([group])
        until(lambda: not running_of([group]))
    finally:
        for process in running_of([group]):
            os.kill(process, signal.SIGKILL)


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
