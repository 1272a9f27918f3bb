"""Pictures that we drew are told from those of others, and only ours are replaced."""

from pathlib import Path

import pytest
from PIL import Image

from ssldet.data.signed import is_free, save_signed
from ssldet.errors import ConfigError


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif"])
def test_what_we_drew_may_be_replaced_and_nothing_else(ending: str, tmp_path: Path) -> None:
    ours, theirs, picture = (
        tmp_path / f"ours.{ending}",
        tmp_path / f"theirs.{ending}",
        Image.new("RGB", (33, 21), "red"),
    )
    for _ in range(2):
        save_signed(picture, ours)
    picture.save(theirs)
    before = theirs.read_bytes()
    with pytest.raises(ConfigError, match=rf"theirs.{ending}: exists, and ssldet did not draw it"):
        save_signed(picture, theirs)
    assert theirs.read_bytes() == before
    with Image.open(ours) as again:
        assert again.size == (33, 21)


def test_a_picture_that_a_kill_cut_short_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_signed(Image.effect_noise((40, 30), 80).convert("RGB"), path)
    for size in (0, 200):
        path.write_bytes(path.read_bytes()[:size] if size else b"")
        assert is_free(path)
        save_signed(Image.effect_noise((40, 30), 80).convert("RGB"), path)
    assert not is_free(tmp_path)
    assert is_free(tmp_path / "none.png")
