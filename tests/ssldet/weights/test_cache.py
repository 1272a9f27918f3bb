import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from filelock import FileLock

from ssldet.errors import CheckpointError, SetupError
from ssldet.home import cache_folder
from ssldet.weights import cache, fetching
from ssldet.weights.cache import cached
from ssldet.weights.zoo import KnownWeights, known_weights


class Served:
    """What a loopback server serves, and how badly."""

    def __init__(self):
        self.content, self.mark = b"x" * 1000, '"first"'
        self.ranges = self.states_size = True
        self.breaks_after = self.slow = self.sends_to = None
        self.asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        served = self.server.served
        wanted = self.headers.get("Range")
        served.asked.append(wanted)
        if served.sends_to:
            self.send_response(302)
            self.send_header("Location", served.sends_to)
            self.end_headers()
            return
        start = 0
        if wanted and served.ranges and self.headers.get("If-Range") == served.mark:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start > len(served.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        if served.states_size:
            self.send_header("Content-Length", str(len(served.content) - start))
        self.send_header("ETag", served.mark)
        self.end_headers()
        time.sleep(served.slow or 0)
        end, served.breaks_after = served.breaks_after, None
        self.wfile.write(served.content[start:end])


@pytest.fixture
def server():
    """What is served, and its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.served = Served()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.served, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSLDET_OFFLINE", raising=False)
    return tmp_path / "home"


def on_this_machine(address):
    """Allow what a loopback server serves, which speaks no https."""
    assert address.startswith("http://127.0.0.1:")


def get(address, **more):
    return cached(known(address, **more), require=on_this_machine)


def known(address, **more):
    return KnownWeights(
        name="a", architecture="none", address=address, file="a.pth", licence="none", source="here", **more
    )


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_the_folder_is_where_the_environment_says(tmp_path):
    assert cache_folder({"SSLDET_HOME": str(tmp_path)}) == tmp_path
    assert cache_folder({}).parts[-2:] == (".cache", "ssldet")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_fetches_once_and_leaves_no_litter(server, home, algorithm):
    served, address = server
    served.content = b"weights" * 1000
    digest = f"{algorithm}:{hashlib.new(algorithm, served.content).hexdigest()[:8]}"
    assert get(f"{address}/a.pth", digest=digest).read_bytes() == served.content
    assert get(f"{address}/a.pth", digest=digest) == home / "a.pth"
    assert len(served.asked) == 1
    assert {path.name for path in home.iterdir()} <= {"a.pth", ".a.pth.lock"}


def test_other_content_than_published_is_refused(server, home):
    served, address = server
    with pytest.raises(CheckpointError, match="its sha256 is not 0123abcd…, so it was removed"):
        get(f"{address}/a.pth", digest="sha256:0123abcd")
    assert {path.name for path in home.iterdir()} <= {".a.pth.lock"}
    served.content = b"the right one"
    digest = f"sha256:{hashlib.sha256(served.content).hexdigest()[:8]}"
    assert get(f"{address}/a.pth", digest=digest).read_bytes() == served.content


def test_an_interrupted_download_goes_on_where_it_broke_off(server, home):
    served, address = server
    served.breaks_after = 700
    with pytest.raises(SetupError, match="broke off after 700 of 1000 bytes; try again"):
        get(f"{address}/a.pth")
    assert visible(home) == []
    assert get(f"{address}/a.pth").read_bytes() == served.content
    assert served.asked == [None, "bytes=700-"]


def test_another_file_since_then_is_fetched_anew(server, home):
    served, address = server
    served.breaks_after = 700
    with pytest.raises(SetupError):
        get(f"{address}/a.pth")
    served.content, served.mark = b"y" * 1500, '"second"'
    assert get(f"{address}/a.pth").read_bytes() == b"y" * 1500


def test_a_server_that_knows_no_ranges_sends_all_again(server, home):
    served, address = server
    served.breaks_after = 700
    with pytest.raises(SetupError):
        get(f"{address}/a.pth")
    served.ranges = False
    assert get(f"{address}/a.pth").read_bytes() == served.content


def test_a_file_that_shrank_since_then_is_fetched_anew(server, home):
    served, address = server
    served.breaks_after = 700
    with pytest.raises(SetupError):
        get(f"{address}/a.pth")
    served.content = b"z" * 600
    assert get(f"{address}/a.pth").read_bytes() == b"z" * 600


@pytest.mark.parametrize("size", ["stated", "unstated"])
def test_a_file_too_large_is_not_kept(server, home, monkeypatch, size):
    served, address = server
    served.states_size = size == "stated"
    monkeypatch.setattr(fetching, "LARGEST_BYTES", 999)
    with pytest.raises(SetupError, match="1000 bytes have no place" if served.states_size else "never ends"):
        get(f"{address}/a.pth")
    assert visible(home) == []


def test_a_full_disk_is_seen_before(server, home, monkeypatch):
    _, address = server
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=999))
    with pytest.raises(SetupError, match="1000 bytes have no place"):
        get(f"{address}/a.pth")


def test_only_https_is_asked(home):
    with pytest.raises(SetupError, match=r"http://127\.0\.0\.1:9/a\.pth is not https"):
        cached(known("http://127.0.0.1:9/a.pth"))
    with pytest.raises(SetupError, match="is not https"):
        cached(known("file:///etc/hostname"))


def test_nobody_is_sent_elsewhere(server, home):
    served, address = server
    served.sends_to = "http://192.0.2.1/a.pth"
    with pytest.raises(AssertionError):
        get(f"{address}/a.pth")
    assert visible(home) == []


@pytest.mark.parametrize("gone", ["https://127.0.0.1:9/a.pth", "https://nowhere.invalid/a.pth"])
@pytest.mark.timing
def test_without_network_it_says_at_once_what_to_fetch_and_where_to_put_it(home, gone):
    start = time.perf_counter()
    with pytest.raises(SetupError, match=f"fetch {gone} and put it at {home / 'a.pth'}"):
        cached(known(gone))
    assert time.perf_counter() - start < 1


@pytest.mark.timing
def test_a_name_server_that_never_answers_is_not_waited_for(home, monkeypatch):
    waiting = threading.Event()

    def look_up(*_, **__):
        waiting.wait(5)
        raise OSError

    monkeypatch.setattr("socket.create_connection", look_up)
    start = time.perf_counter()
    with pytest.raises(SetupError, match=r"example\.org does not answer"):
        cached(known("https://example.org/a.pth"))
    assert time.perf_counter() - start < 1.2
    waiting.set()


def test_two_processes_fetch_it_once(server, home):
    served, address = server
    served.slow = 0.3
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(get, [f"{address}/a.pth"] * 2))
    assert [path.read_bytes() for path in paths] == [served.content] * 2
    assert len(served.asked) == 1


def test_nobody_waits_for_ever(server, home, monkeypatch):
    _, address = server
    home.mkdir()
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.1)
    with FileLock(home / ".a.pth.lock"), pytest.raises(SetupError, match="another process has been fetching it"):
        get(f"{address}/a.pth")


def test_offline_forbids_to_fetch(home, monkeypatch, server):
    served, address = server
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    with pytest.raises(SetupError, match="SSLDET_OFFLINE forbids"):
        get(f"{address}/a.pth")
    home.mkdir()
    (home / "a.pth").write_bytes(b"put there by hand")
    assert get(f"{address}/a.pth") == home / "a.pth"
    assert served.asked == []


def test_what_only_a_browser_gets_is_left_to_the_user(home):
    with pytest.raises(SetupError, match=r"only a browser gets it; fetch https://drive\.\S+ and put it at \S+/updetr"):
        cached(known_weights("updetr-r50"))
