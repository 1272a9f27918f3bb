"""Twenty steps on a CPU, from image files to losses, against a recorded curve.

A refactor leaves the curve as it is. A change of numbers records it anew, `python tests/golden/test_curves.py`, and
says why. The tolerance leaves room for other processors and versions, not for other mathematics: other weights, order,
patches or terms move the first values by far more.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

STEPS = 20
TOLERANCE = 0.002
RECORDED = Path(__file__).with_name("random_query_patch.json")


def write_images(folder: Path) -> None:
    """Write lossless images of soft colours, so that no decoder has a say."""
    folder.mkdir()
    for number in range(12):
        coarse = torch.rand(1, 3, 7, 5, generator=torch.Generator().manual_seed(number))
        smooth = torch.nn.functional.interpolate(coarse, (64, 80), mode="bilinear")[0]
        pixels = (255 * smooth).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def measure(place: Path) -> dict[str, list[float]]:
    """Return every logged loss of a short run of the flagship's smallest recipe."""
    from ssldet import pretrain

    write_images(place / "images")
    changes = {"data.batch_size": 8, "data.workers": 0, "log_every": 1, "seed": 5, "device": "cpu"}
    run = pretrain(
        place / "images", recipe="random_query_patch/tiny", steps=STEPS, out=place / "run", overrides=changes
    )
    lines = [line for line in run.metrics if line["kind"] == "train"]
    return {name: [line[name] for line in lines] for name in lines[0] if name == "loss" or name.startswith("loss/")}


def test_the_curve_is_the_recorded_one(tmp_path: Path) -> None:
    recorded, measured = json.loads(RECORDED.read_text()), measure(tmp_path)
    assert measured.keys() == recorded.keys()
    for name, values in recorded.items():
        assert len(values) == STEPS
        assert measured[name] == pytest.approx(values, rel=TOLERANCE, abs=1e-4), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: [round(v, 6) for v in values] for name, values in measure(Path(folder)).items()}
    RECORDED.write_text(json.dumps(curves, indent=1) + "\n")
