"""Names -> objects, without importing what is only listed."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from ssldet import registry
from ssldet.errors import ConfigError, DataError


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    entries = [
        EntryPoint(name="alpha", value="collections:OrderedDict", group="ssldet.tasks"),
        EntryPoint(name="broken", value="no_such_module:X", group="ssldet.tasks"),
        EntryPoint(name="twice", value="collections:deque", group="ssldet.tasks"),
        EntryPoint(name="twice", value="collections:Counter", group="ssldet.tasks"),
        EntryPoint(name="same", value="collections:deque", group="ssldet.tasks"),
        EntryPoint(name="same", value="collections:deque", group="ssldet.tasks"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(entries).select(group=group))
    registry._claims.cache_clear()
    yield entries
    registry._claims.cache_clear()


@pytest.mark.usefixtures("shelf")
def test_listing_shows_even_what_does_not_import() -> None:
    assert registry.names("ssldet.tasks") == ["alpha", "broken", "same", "twice"]
    assert registry.names("ssldet.recipes") == []


@pytest.mark.usefixtures("shelf")
def test_one_name_loads_one_thing() -> None:
    import collections

    assert registry.find("ssldet.tasks", "alpha") is collections.OrderedDict
    assert registry.find("ssldet.tasks", "same") is collections.deque
    assert registry.find_or_import("ssldet.tasks", "alpha") is collections.OrderedDict
    assert registry.find_or_import("ssldet.tasks", "collections:ChainMap") is collections.ChainMap
    assert registry.name_of("ssldet.tasks", collections.OrderedDict) == "alpha"
    assert registry.name_of("ssldet.tasks", collections.ChainMap) == "collections:ChainMap"


def test_many_names_are_not_listed_in_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'detectoin/small' \(did you mean .*ssldet list recipes$") as told:
        registry.find("ssldet.recipes", "detectoin/small")
    assert len(str(told.value)) < 150


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("alhpa", r"no task 'alhpa' \(did you mean 'alpha'\?\); installed: alpha, broken"),
        ("broken", "can't be imported"),
        ("twice", "claimed by collections:Counter and collections:deque"),
        ("collections:Nothing", "can't be imported"),
    ],
)
def test_errors_teach(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        registry.find_or_import("ssldet.tasks", name)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a trace when it is imported."""
    trace = tmp_path / "imported"
    (tmp_path / "stranger_module.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield trace
    sys.modules.pop("stranger_module", None)


@pytest.mark.usefixtures("shelf")
def test_only_what_a_person_names_is_imported(stranger: Path) -> None:
    for find in (registry.find, registry.find_or_imported):
        with pytest.raises(ConfigError):
            find("ssldet.tasks", "stranger_module:Thing")
    assert not stranger.exists()
    thing = registry.find_or_import("ssldet.tasks", "stranger_module:Thing")
    assert stranger.exists()
    assert registry.find_or_imported("ssldet.tasks", "stranger_module:Thing") is thing
    with pytest.raises(ConfigError, match=r"--set task\.name=stranger_module:Nothing"):
        registry.find_or_imported("ssldet.tasks", "stranger_module:Nothing")


@pytest.mark.parametrize(
    "body", ["raise ValueError('so it is\\nand so on')", "raise SystemExit(3)", "1 / 0", "import none_such"]
)
def test_a_package_that_fails_on_import_costs_one_line(
    body: str, shelf: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_module.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    shelf.append(EntryPoint(name="failing", value="failing_module:X", group="ssldet.tasks"))
    registry._claims.cache_clear()
    with pytest.raises(ConfigError, match=r"task 'failing' \(failing_module:X\) can't be imported: .") as caught:
        registry.find("ssldet.tasks", "failing")
    assert len(str(caught.value).splitlines()) == 1


def test_a_taken_name_stays_ours(shelf: list[EntryPoint], caplog: pytest.LogCaptureFixture) -> None:
    shelf.append(EntryPoint(name="ours", value="ssldet.errors:DataError", group="ssldet.tasks"))
    shelf.append(EntryPoint(name="ours", value="collections:deque", group="ssldet.tasks"))
    registry._claims.cache_clear()
    registry._warn.cache_clear()
    assert [registry.find("ssldet.tasks", "ours") for _ in range(2)] == [DataError, DataError]
    assert [record.message for record in caplog.records] == [
        "task 'ours' stays ssldet.errors:DataError; collections:deque claims a name that is taken"
    ]
