"""A plan without images: every figure with its source, and none without."""

import json
import tomllib
from pathlib import Path

import pytest

from ssldet import cli
from ssldet.errors import ConfigError
from ssldet.verbs import plan
from ssldet.verbs import speed as measurement

R50 = "random_query_patch/r50"


def write(place: Path, rows: list[dict[str, object]]) -> None:
    place.write_text(json.dumps({"machine": {"device": "A GPU", "tiny": False}, "results": rows}))


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "gpu.json"
    monkeypatch.setattr(measurement, "_committed_file", lambda: place if place.exists() else None)
    return place


def test_what_nobody_measured_is_not_known(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    estimate = plan(R50, images=1_281_167, devices=8)
    assert (estimate.steps, estimate.share) == (300_274, 32)
    assert (estimate.hours, estimate.images_per_second, estimate.gigabytes) == (None, None, None)
    assert estimate.disk > estimate.state > 0
    cli.main(["plan", R50, "--images", "1281167", "--devices", "8"])
    said = capsys.readouterr().out
    assert "300,274 steps: 60 passes over 1,281,167 images" in said
    assert "speed    not known: no measurement of a GPU is committed for such a recipe; --measured" in said
    assert "activations not measured" in said
    assert "features" not in said
    kept = plan(R50, images=100, overrides={"data.views_per_image": 1, "data.feature_cache": 5.0})
    assert "; at most 4,768 MB for features of the backbone (data.feature_cache)" in str(kept)


def test_a_committed_measurement_is_scaled_and_named(committed: Path) -> None:
    write(
        committed,
        [
            {"part": "steps", "batch": 32, "form": "fp32", "images_per_second": 50.0},
            {"part": "steps", "batch": 32, "form": "bf16", "images_per_second": 100.0},
            {"part": "steps", "batch": 256, "form": "bf16", "images_per_second": 400.0},
            {"part": "steps", "batch": 64, "form": "bf16", "failed": "out of memory"},
            {"part": "memory", "batch": 32, "gigabytes": 7.5},
            {"part": "memory", "batch": 64, "gigabytes": 14.0},
        ],
    )
    estimate = plan(R50, images=128_000, devices=8, epochs=10.0)
    assert estimate.steps == 5000
    assert estimate.hours == pytest.approx(10 * 128_000 / 800 / 3600)
    assert (estimate.images_per_second, estimate.gigabytes) == (100.0, 7.5)
    assert "bf16, 32 images at once on one A GPU" in str(estimate)
    assert "7.5 GB on each device (the same file: bf16, 32 images at once)" in str(estimate)
    assert "all devices work at the speed of one" in str(estimate)
    assert plan(R50, images=1000, devices=8, overrides={"precision": "32"}).images_per_second == 50.0
    assert plan("detection/r50", images=1000, devices=8).hours is None
    assert plan(R50, images=1000, devices=8, overrides={"detector.encoder_layers": 5}).hours is None


@pytest.mark.parametrize("recipe", ["random_query_patch/tiny", "detection/tiny"])
def test_a_few_steps_are_measured_here(recipe: str) -> None:
    fields = {"device": "cpu", "data.batch_size": 4, "task.max_size" if "detection" in recipe else "task.eval_side": 64}
    estimate = plan(recipe, images=10_000, devices=2, measured=True, overrides=fields)
    assert estimate.hours is not None
    assert estimate.images_per_second is not None
    assert estimate.hours == pytest.approx(estimate.steps * 4 / estimate.images_per_second / 2 / 3600)
    assert "measured here: 3 steps of 2 noise images" in estimate.speed_source
    assert "CPU" in estimate.speed_source


def test_a_plan_that_can_not_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="--images: 0 must be 1 or more") as caught:
        plan(R50, images=0, devices=-1)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError, match="256 images can't be split equally among 7 devices; choose a multiple of 7"):
        plan(R50, images=100, devices=7)


def test_the_committed_measurement_is_one_file_of_which_a_wheel_takes_a_copy() -> None:
    root = Path(__file__).parents[3]
    packing = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert packing["targets"]["wheel"]["force-include"]["benchmarks/results/gpu.json"] == "ssldet/gpu.json"
    assert not (root / "ssldet" / measurement.COMMITTED).exists()
    assert measurement._committed_file() == root / "benchmarks" / "results" / measurement.COMMITTED
    estimate = plan(R50, images=1_281_167, devices=8)
    assert estimate.hours is not None
    assert "bf16, 32 images at once on one NVIDIA" in estimate.speed_source
