"""Models go to a hub and come back, by a server on this machine; nothing is asked of it by any other name."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ssldet
from downstream.detection import Detection
from downstream.export.safetensors import export
from ssldet.errors import CheckpointError, ConfigError, SetupError
from ssldet.recipe import to_document
from ssldet.verbs.opening import load, open_model
from ssldet.weights import hub
from ssldet.weights.backbone import weights_path
from tests.hub_server import TOKEN, HubServer, Repository
from tests.models import TINY_DETR

INFO = {
    "task": to_document(Detection(scales=(96,), eval_scale=96, max_size=160)),
    "detector": to_document(TINY_DETR),
    "classes": ["ant", "bee", "cat", "dog"],
    "category_ids": [1, 2, 3, 4],
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub of this test, where its owner is logged in."""
    found = HubServer()
    thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SSLDET_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SSLDET_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A weights file."""
    path = tmp_path / "here" / "model.safetensors"
    export(Detection().objective(TINY_DETR.build()).eval(), INFO, path)
    return path


def test_a_model_goes_and_comes_back(server: HubServer, model: Path) -> None:
    done = ssldet.export(model, to="hub:ada/bugs")
    sent = server.repositories["ada/bugs"]
    assert set(sent.files) >= {"README.md", "model.safetensors"}
    assert not {name for name in sent.files if name.endswith(".safetensors.md")}
    assert sent.private
    card = sent.files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: ssldet\nlicense: other\n")
    assert "ssldet predict hub:ada/bugs IMAGES" in card
    assert f"{server.address}/ada/bugs" in str(done)
    came, ours = load("hub:ada/bugs").state_dict(), load(model).state_dict()
    assert came.keys() == ours.keys()
    assert all(torch.equal(came[name], value) for name, value in ours.items())
    opened = open_model(f"hub:ada/bugs@{sent.commit}")
    assert opened.classes == ("ant", "bee", "cat", "dog")
    assert weights_path("hub:ada/bugs").name == "model.safetensors"


def test_the_licence_is_said_and_the_second_time_nothing_large_is_fetched(
    server: HubServer, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.repositories["ada/bugs"] = Repository(
        files={"m.safetensors": model.read_bytes(), "README.md": b"license: mit\n"}
    )
    caplog.set_level("INFO", logger="ssldet")
    hub.fetched("hub:ada/bugs")
    assert ", licence mit, 0.1 MB" in caplog.text
    server.asked.clear()
    hub.fetched("hub:ada/bugs")
    assert not [line for line in server.asked if "/resolve/" in line]


def test_offline_takes_what_was_fetched(server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["ada/bugs"] = Repository(files={"m.safetensors": model.read_bytes()})
    there = hub.fetched("hub:ada/bugs")
    monkeypatch.setenv("SSLDET_OFFLINE", "1")
    server.asked.clear()
    assert hub.fetched("hub:ada/bugs") == there
    assert hub.fetched(f"hub:ada/bugs@{server.repositories['ada/bugs'].commit[:10]}") == there
    with pytest.raises(SetupError, match="SSLDET_OFFLINE or HF_HUB_OFFLINE forbids to fetch it"):
        hub.fetched("hub:ada/others")
    with pytest.raises(SetupError, match="forbids to send anything"):
        ssldet.export(model, to="hub:ada/bugs")
    assert not server.asked


def test_a_folder_of_transformers_comes_whole(server: HubServer) -> None:
    files = {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "model.safetensors": b"1",
        "pytorch_model.bin": b"2",
    }
    server.repositories["ada/detr"] = Repository(files=files)
    folder = hub.fetched("hub:ada/detr", folder=True)
    assert {path.name for path in folder.iterdir()} == files.keys() - {"pytorch_model.bin"}
    assert hub.fetched("hub:ada/detr").name == "model.safetensors"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("hub:ada/nothing", SetupError, "no such repository, or it is private"),
        ("hub:ada/bugs@v9", SetupError, "has no revision 'v9'"),
        ("hub:ada/gated", SetupError, "its owner asks for consent"),
        ("hub:ada", ConfigError, "write hub:USER/NAME or hub:USER/NAME@REVISION"),
        ("hub:ada/two", CheckpointError, r"more than one file could be its model \(a.safetensors, b.safetensors\)"),
        ("hub:ada/none", CheckpointError, r"no file of it ends in .* \(README.md\)"),
    ],
)
def test_what_can_not_be_opened_is_said_on_one_line(
    server: HubServer, name: str, error: type[Exception], said: str
) -> None:
    server.gated.add("ada/gated")
    server.repositories |= {
        "ada/bugs": Repository(files={"m.safetensors": b""}),
        "ada/two": Repository(files={"a.safetensors": b"", "b.safetensors": b""}),
        "ada/none": Repository(files={"README.md": b""}),
    }
    with pytest.raises(error, match=said) as told:
        open_model(name)
    assert "\n" not in str(told.value)


def test_what_can_not_be_sent_is_said_on_one_line(
    server: HubServer, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SetupError, match="can't be written, you have no permission; log in with: hf auth login"):
        ssldet.export(model, to="hub:grace/bugs")
    with pytest.raises(ConfigError, match="leave @v1 out"):
        ssldet.export(model, to="hub:ada/bugs@v1")
    with pytest.raises(ConfigError, match="leave it out"):
        ssldet.export(model, to="hub:ada/bugs", out=tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="write --to hub:ada/bugs and no --out"):
        ssldet.export(model, to="onnx", out="hub:ada/bugs")
    with pytest.raises(ConfigError, match="--out FILE says where to"):
        ssldet.export(model, to="onnx")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SetupError, match="by somebody unknown; log in with"):
        ssldet.export(model, to="hub:ada/bugs")
    assert not server.repositories


def test_a_hub_that_is_not_there_is_said_on_one_line(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="can't be fetched") as told:
        open_model("hub:ada/bugs")
    assert "\n" not in str(told.value)
    assert not server.asked


def test_nothing_is_asked_of_a_hub_by_other_names(server: HubServer, model: Path, tmp_path: Path) -> None:
    open_model(model)
    ssldet.export(model, to="safetensors", out=tmp_path / "copy.safetensors")
    with pytest.raises(CheckpointError, match="no such run or file"):
        open_model("ada/bugs")
    assert not server.asked
