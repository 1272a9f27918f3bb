"""Names -> objects, without importing what is only listed."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from ssldet import registry
from ssldet.errors import ConfigError


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
    assert registry.find("ssldet.tasks", "collections:ChainMap") is collections.ChainMap
    assert registry.name_of("ssldet.tasks", collections.OrderedDict) == "alpha"
    assert registry.name_of("ssldet.tasks", collections.ChainMap) == "collections:ChainMap"


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
        registry.find("ssldet.tasks", name)
