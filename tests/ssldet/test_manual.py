"""The pages that an installation carries."""

import pytest

from ssldet import manual
from ssldet.errors import ConfigError


def test_pages_are_listed_with_their_titles_and_shown() -> None:
    listed = manual.contents()
    assert "channels " in listed
    assert "Other channels than three" in listed
    assert manual.page("channels").startswith("# Other channels than three")
    with pytest.raises(ConfigError, match=r"no page 'chanels' \(did you mean 'channels'\?\); ssldet docs lists all"):
        manual.page("chanels")


def test_an_installation_without_pages_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual, "FOLDERS", ())
    assert "in the folder docs of the source" in manual.contents()
