"""pictures -> files that say by whom they were drawn, so that only these are ever replaced by others."""

from pathlib import Path

from PIL import Image

from ssldet.disk import naming
from ssldet.errors import ConfigError
from ssldet.regular import read_bytes

SIGN = "drawn by ssldet"
SOFTWARE = 0x0131
"""Tag of Exif that says which program made a picture."""


def save_signed(picture: Image.Image, path: Path) -> None:
    """Write a picture that says that it is ours, in the format that its ending names.

    Args:
        picture: What was drawn.
        path: Where to.

    Raises:
        ConfigError: A picture that is not ours has this name.
    """
    require_ours_or_nothing(path)
    signed = Image.Exif()
    signed[SOFTWARE] = SIGN
    with naming(path):
        # GIF has no Exif, but a comment; BMP has neither, so that no BMP is ever replaced.
        picture.save(path, exif=signed.tobytes(), comment=SIGN.encode())


def require_ours_or_nothing(path: Path) -> None:
    """Let a picture be written only where none is, or one that `save_signed` wrote.

    Args:
        path: Where to.

    Raises:
        ConfigError: Something else has this name and would be lost.
    """
    if not is_free(path):
        raise ConfigError(f"{path}: exists, and ssldet did not draw it, so that it would be lost; choose another --out")


def is_free(path: Path) -> bool:
    """Tell whether nothing is lost by writing a picture: there is none, or an empty file, or one of `save_signed`.

    Args:
        path: Where to.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not content or SIGN.encode() in content
