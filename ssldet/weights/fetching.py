"""address -> file, over https only; interrupted downloads continue, and files are checked before they are named."""

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
from ssldet.regular import digest_of, open_regular, read_text

CONTACT_SECONDS, STALL_SECONDS = 0.9, 30.0
"""Seconds that a server may take to accept a connection, and to send the next bytes."""
LARGEST_BYTES = 4 * 2**30
"""Limit of a download, far above any published file."""
CHUNK_BYTES = 2**20
RANGE_NOT_SATISFIABLE = 416


def require_https(address: str) -> None:
    """Raise an error if an address is not encrypted, so that its content could be replaced on the way.

    Args:
        address: Address of a download or of a redirect.

    Raises:
        OSError: The address does not begin with `https://`.
    """
    if urlsplit(address).scheme != "https":
        raise OSError(f"{address} is not https")


def fetch(address: str, path: Path, digest: str = "", *, require: Callable[[str], None] = require_https) -> None:
    """Download a file; after an interruption its first part stays in a hidden file beside it, for the next attempt.

    Args:
        address: Address of the file.
        path: File to create; its folder exists.
        digest: `sha256:` or `md5:` and the first digits of the hash; empty where the authors state none.
        require: Raises on addresses that are not allowed, redirects included.

    Raises:
        OSError: The address can't be reached, the download was interrupted, or there is too little space.
        CheckpointError: The downloaded file is not the published one; it has been removed.
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
    if digits and not digest_of(part, algorithm).startswith(digits):
        part.unlink()
        raise CheckpointError(f"{address}: its {algorithm} is not {digits}…, so it was removed; don't use it")
    part.replace(path)


class _Redirects(HTTPRedirectHandler):
    """Follow redirects to allowed addresses only."""

    def __init__(self, require: Callable[[str], None]) -> None:
        self._require = require

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        self._require(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reach(address: str) -> None:
    """Try to connect, in a thread, because looking up a host name may take much longer than any time limit."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        parts = urlsplit(proxy)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONTACT_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONTACT_SECONDS)
    error = outcome[0] if outcome else TimeoutError(f"{host} does not answer")
    if error is not None:
        raise error


def _receive(address: str, part: Path, mark: Path, require: Callable[[str], None]) -> None:
    """Continue the first part if the server still has the same file, else start again."""
    begun = part.stat().st_size if part.is_file() and mark.is_file() else 0
    headers = {"Range": f"bytes={begun}-", "If-Range": read_text(mark)} if begun else {}
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
    """Append the bytes of an answer to a file; return the size of the file."""
    with open_regular(part, "ab" if begun else "wb") as file:
        while chunk := answer.read(CHUNK_BYTES):
            begun += len(chunk)
            if begun > LARGEST_BYTES:
                raise OSError("the file never ends")
            file.write(chunk)
    return begun
