import functools
import hashlib
import http.server
import threading
import time
from dataclasses import replace

import pytest

from ssldet.errors import CheckpointError, SetupError
from ssldet.weights import cache
from ssldet.weights.cache import SWAV, KnownWeights, cache_folder, cached, known_weights


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder and the address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSLDET_OFFLINE", raising=False)
    return tmp_path / "home"


def known(address, **more):
    return KnownWeights(address=address, file="a.pth", licence="none", source="here", **more)


def test_the_folder_is_where_the_environment_says(tmp_path):
    assert cache_folder({"SSLDET_HOME": str(tmp_path)}) == tmp_path
    assert cache_folder({}).parts[-2:] == (".cache", "ssldet")


def test_fetches_once_and_leaves_no_litter(server, home):
    folder, address = server
    content = b"weights" * 1000
    (folder / "a.pth").write_bytes(content)
    wanted = known(f"{address}/a.pth", sha256=hashlib.sha256(content).hexdigest()[:8])
    assert cached(wanted).read_bytes() == content
    (folder / "a.pth").unlink()
    assert cached(wanted) == home / "a.pth"
    assert [path.name for path in home.iterdir()] == ["a.pth"]


def test_other_content_than_published_is_refused(server, home):
    folder, address = server
    (folder / "a.pth").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="its SHA-256 is not 0123abcd"):
        cached(known(f"{address}/a.pth", sha256="0123abcd"))
    assert list(home.iterdir()) == []


def test_a_file_too_large_is_not_begun(server, home, monkeypatch):
    folder, address = server
    (folder / "a.pth").write_bytes(b"x" * 100)
    monkeypatch.setattr(cache, "LARGEST_BYTES", 99)
    with pytest.raises(SetupError, match="100 bytes have no place"):
        cached(known(f"{address}/a.pth"))
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("gone", ["http://127.0.0.1:9/a.pth", "https://nowhere.invalid/a.pth"])
def test_without_network_it_says_at_once_what_to_fetch_and_where_to_put_it(home, gone):
    start = time.perf_counter()
    with pytest.raises(SetupError, match=f"fetch {gone} and put it at {home / 'a.pth'}"):
        cached(known(gone))
    assert time.perf_counter() - start < 2


def test_offline_forbids_to_fetch(home, monkeypatch, server):
    folder, address = server
    (folder / "a.pth").write_bytes(b"x")
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    with pytest.raises(SetupError, match="SSLDET_OFFLINE forbids"):
        cached(known(f"{address}/a.pth"))
    home.mkdir()
    (home / "a.pth").write_bytes(b"put there by hand")
    assert cached(known(f"{address}/a.pth")) == home / "a.pth"


def test_names():
    assert known_weights("swav", "resnet50") is SWAV
    found = known_weights("imagenet", "resnet18")
    assert found.file.startswith("resnet18-")
    assert len(found.sha256) == 8
    assert found == replace(found, address=f"https://download.pytorch.org/models/{found.file}")


@pytest.mark.parametrize(
    ("name", "architecture", "words"),
    [
        ("swav", "resnet18", "fits resnet50 only, not resnet18"),
        ("swav", None, "not this backbone"),
        ("imagenet", None, "name a file"),
        ("imagnet", "resnet50", "did you mean 'imagenet'"),
    ],
)
def test_names_that_lead_nowhere(name, architecture, words):
    with pytest.raises(CheckpointError, match=words):
        known_weights(name, architecture)
