"""The small world of the fault tests, made once for all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Images, labels, and a run of each kind."""
    from tests.faults.forking import tidy
    from tests.faults.world import make

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tidy():
        yield make(Path(tmp_path_factory.mktemp("world")))
    torch.set_num_threads(threads)
