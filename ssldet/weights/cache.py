"""name -> weights file: from the cache folder, or fetched into it once; at once a clear word where there is no network.

The cache folder is `SSLDET_HOME`, by default `~/.cache/ssldet`. With `SSLDET_OFFLINE` set nothing is ever fetched.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from torchvision import models

from ssldet.errors import CheckpointError, SetupError, suggest

CONTACT_SECONDS, STALL_SECONDS = 0.9, 30.0
"""How long a server may take to answer at all, and later to send the next bytes."""
LARGEST_BYTES = 4 * 2**30
"""No file of the table comes near."""


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """A weights file that has a name here.

    Attributes:
        address: Where its authors publish it.
        file: Its name in the cache folder.
        licence: What its authors allow.
        source: Who made it, and how.
        sha256: First digits of the hash of its content; empty where its authors state none.
    """

    address: str
    file: str
    licence: str
    source: str
    sha256: str = ""


SWAV = KnownWeights(
    address="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    file="swav_800ep_pretrain.pth.tar",
    licence="CC-BY-NC-4.0",
    source="Caron et al. 2020, ImageNet without labels, 800 epochs",
)
NAMES = ("swav", "imagenet")
"""Names that `known_weights` understands."""


def known_weights(name: str, architecture: str | None) -> KnownWeights:
    """Return what a name stands for.

    Args:
        name: One of `NAMES`.
        architecture: The network that shall have them, as torchvision calls it; none where it isn't torchvision's.

    Raises:
        CheckpointError: No such name, or nothing of that name for this network.
    """
    if name == "swav":
        if architecture != "resnet50":
            raise CheckpointError(f"'swav' fits resnet50 only, not {architecture or 'this backbone'}; name a file")
        return SWAV
    if name != "imagenet":
        raise CheckpointError(f"no weights {name!r}{suggest(name, NAMES)}; name one of {', '.join(NAMES)} or a file")
    if architecture is None:
        raise CheckpointError("'imagenet' is known for torchvision's resnets only; name a file for this backbone")
    # Their first version, which DETR was trained with; the later recipe's features are known to transfer worse.
    entry: Any = models.get_model_weights(architecture).IMAGENET1K_V1
    file = entry.url.rpartition("/")[2]
    return KnownWeights(
        address=entry.url,
        file=file,
        licence="BSD-3-Clause code; ImageNet's terms for the images",
        source="torchvision, ImageNet with labels",
        sha256=file.removesuffix(".pth").rpartition("-")[2],
    )


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder that holds fetched files.

    Args:
        environment: Where `SSLDET_HOME` is looked up; none means the process's own.
    """
    home = (os.environ if environment is None else environment).get("SSLDET_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "ssldet"


def cached(known: KnownWeights) -> Path:
    """Return the file, fetching it if it isn't there yet.

    Args:
        known: Which.

    Raises:
        SetupError: It isn't there and can't be fetched; the message says where to get it and where to put it.
        CheckpointError: What was fetched is not what its authors published.
    """
    path = cache_folder() / known.file
    if path.is_file():
        return path
    remedy = f"fetch {known.address} and put it at {path}"
    if os.environ.get("SSLDET_OFFLINE"):
        raise SetupError(f"{known.file}: not in the cache folder, and SSLDET_OFFLINE forbids to fetch it; {remedy}")
    try:
        _fetch(known, path)
    except OSError as error:
        raise SetupError(f"{known.file}: can't be fetched ({error}); {remedy}") from error
    return path


def _fetch(known: KnownWeights, path: Path) -> None:
    """Fetch into a temporary file beside the final one, so that the final name never holds half a file."""
    # The address comes from our own table, so its scheme is known.
    with urlopen(Request(known.address, method="HEAD"), timeout=CONTACT_SECONDS) as answer:  # noqa: S310
        size = int(answer.headers.get("Content-Length", 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    if size > min(LARGEST_BYTES, shutil.disk_usage(path.parent).free):
        raise OSError(f"{size} bytes have no place in {path.parent}")
    digest, arrived = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            with urlopen(known.address, timeout=STALL_SECONDS) as answer:  # noqa: S310
                while chunk := answer.read(2**20):
                    arrived += len(chunk)
                    if arrived > LARGEST_BYTES:
                        raise OSError("the file never ends")
                    digest.update(chunk)
                    file.write(chunk)
            if size and arrived != size:
                raise OSError(f"{arrived} of {size} bytes arrived")
            if not digest.hexdigest().startswith(known.sha256):
                raise CheckpointError(f"{known.address}: its SHA-256 is not {known.sha256}…; don't use it")
            file.close()
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)
