"""address -> file, over https only: taken up again where it broke off, and checked before it gets its name."""

import hashlib
import shutil
import socket
import threading
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, getproxies, proxy_bypass

from ssldet.errors import CheckpointError

CONTACT_SECONDS, STALL_SECONDS = 0.9, 30.0
"""How long a server may take to be reached at all, and later to send the next bytes."""
LARGEST_BYTES = 4 * 2**30
"""No file of the zoo comes near."""
CHUNK_BYTES = 2**20
RANGE_NOT_SATISFIABLE = 416


def require_https(address: str) -> None:
    """Refuse an address whose content somebody on the way could exchange.

    Args:
        address: Where a download starts, or where it is sent on to.

    Raises:
        OSError: It doesn't begin with `https://`.
    """
    if urlsplit(address).scheme != "https":
        raise OSError(f"{address} is not https")


def fetch(address: str, path: Path, digest: str = "", *, require: Callable[[str], None] = require_https) -> None:
    """Fetch a file; what arrives before an interruption stays in a hidden file beside it, for the next attempt.

    Args:
        address: Where it is.
        path: Where it goes; its folder exists.
        digest: `sha256:` or `md5:` and the first digits of the hash; empty where the authors state none.
        require: Raises on addresses that may not be asked, redirects included.

    Raises:
        OSError: It can't be reached, broke off, or has no place.
        CheckpointError: What arrived is not what its authors published; it has been removed.
    """
    require(address)
    _reach(address)
    part, mark = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.mark")
    try:
        _receive(address, part, mark, require)
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        # The file has shrunk since the last attempt.
        part.unlink(missing_ok=True)
        _receive(address, part, mark, require)
    except HTTPException as error:
        raise OSError(f"the answer makes no sense: {error!r}") from error
    mark.unlink(missing_ok=True)
    algorithm, _, digits = digest.partition(":")
    if digits and not _hash(part, algorithm).startswith(digits):
        part.unlink()
        raise CheckpointError(f"{address}: its {algorithm} is not {digits}…, so it was removed; don't use it")
    part.replace(path)


class _Redirects(HTTPRedirectHandler):
    """Follow only to where one may go."""

    def __init__(self, require: Callable[[str], None]) -> None:
        self._require = require

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        self._require(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reach(address: str) -> None:
    """Knock at the door, in a thread because looking up a name may hang for much longer than any time limit."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    outcome: list[OSError | None] = []

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=CONTACT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(CONTACT_SECONDS)
    error = outcome[0] if outcome else TimeoutError(f"{host} does not answer")
    if error is not None:
        raise error


def _receive(address: str, part: Path, mark: Path, require: Callable[[str], None]) -> None:
    """Append to what is there already where the server still has the same file, else start anew."""
    begun = part.stat().st_size if part.is_file() and mark.is_file() else 0
    headers = {"Range": f"bytes={begun}-", "If-Range": mark.read_text()} if begun else {}
    opener = build_opener(_Redirects(require))
    with opener.open(Request(address, headers=headers), timeout=STALL_SECONDS) as answer:  # noqa: S310  # checked above
        if not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {begun}-"):
            begun = 0
        size = begun + int(answer.headers.get("Content-Length", 0))
        if size > LARGEST_BYTES or size - begun > shutil.disk_usage(part.parent).free:
            raise OSError(f"{size} bytes have no place in {part.parent}")
        same = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if same and not same.startswith("W/"):
            mark.write_text(same)
        else:
            mark.unlink(missing_ok=True)
        arrived = _append(answer, part, begun)
    if size > begun and arrived != size:
        raise OSError(f"broke off after {arrived} of {size} bytes; try again to go on from there")


def _append(answer: HTTPResponse, part: Path, begun: int) -> int:
    """Write what arrives; return the size that the file then has."""
    with part.open("ab" if begun else "wb") as file:
        while chunk := answer.read(CHUNK_BYTES):
            begun += len(chunk)
            if begun > LARGEST_BYTES:
                raise OSError("the file never ends")
            file.write(chunk)
    return begun


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
