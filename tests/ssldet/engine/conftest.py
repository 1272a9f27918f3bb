"""Fixtures of the engine's tests: the fake world, loaded late so that the shape checks see every module of ours."""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module of fakes, importable by name so that a recorded configuration finds its classes again."""
    spec = importlib.util.spec_from_file_location("engine_fakes", Path(__file__).with_name("fakes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_fakes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _fake_world(fakes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, the fake source behind every data specification, and one look at what is installed."""
    from ssldet import registry
    from ssldet.engine import sources

    monkeypatch.setattr(registry, "_claims", functools.cache(registry._claims))

    monkeypatch.setattr(sources, "open_source", fakes.open_fake)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train(fakes: ModuleType) -> Callable[..., dict[str, Any]]:
    """`train(path, run, resume=False)`: a run from its folder on, as a command would do it."""
    from ssldet.engine.fit import fit
    from ssldet.engine.folder import RunFolder

    def call(path: Path, run: Any, *, resume: bool = False, **more: Any) -> dict[str, Any]:
        folder = RunFolder(path) if resume else RunFolder.create(path, run)
        return fit(run, folder, resume=resume, **more)

    return call
