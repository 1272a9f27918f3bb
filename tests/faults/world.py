"""folder -> images, labels, a pretrained run and a fine-tuned one, made in this process."""

from dataclasses import dataclass
from pathlib import Path

from downstream.annotations.shapes import write_shapes
from ssldet import cli

SMALL = (
    "detector.width=16", "detector.heads=2", "detector.encoder_layers=1", "detector.decoder_layers=1",
    "detector.feedforward=16", "detector.backbone.tiny_channels=[4,4,4]", "data.batch_size=2", "log_every=1",
    "checkpoint.every_steps=1", "checkpoint.keep=3", "device=cpu",
)  # fmt: skip
STEPS = 4


@dataclass(frozen=True)
class World:
    """What verbs work on.

    Attributes:
        folder: Where all of it is.
    """

    folder: Path

    @property
    def images(self) -> str:
        return str(self.folder / "made" / "images")

    @property
    def coco(self) -> str:
        return f"coco:{self.folder}/made/instances.json:{self.images}"

    @property
    def pretrained(self) -> str:
        return str(self.folder / "pre")

    @property
    def finetuned(self) -> str:
        return str(self.folder / "fine")

    def words(self, verb: str, out: Path, workers: int = 0) -> list[str]:
        """Return a command line that writes to `out`."""
        train = ["--steps", str(STEPS), "--out", str(out), "--set", *SMALL, f"data.workers={workers}"]
        patches, queries = "detector.num_queries=10", "detector.num_queries=8"
        return {
            "pretrain": ["pretrain", self.images, "--recipe", "random_query_patch/tiny", *train, patches],
            "finetune": ["finetune", "scratch", "--data", self.coco, "--recipe", "detection/tiny", *train, queries],
            "evaluate": [
                "evaluate", self.finetuned, "--data", self.coco, "--save-predictions", str(out),
                "--workers", str(workers),
            ],
            "predict": ["predict", self.finetuned, self.images, "--out", str(out)],
            "export": ["export", self.finetuned, "--to", "safetensors", "--out", str(out)],
            "convert": ["data", "convert", self.coco, "--out", str(out)],
            "preview": ["preview", self.images, "--out", str(out), "--count", "2", "--set", "data.workers=0"],
            "report": ["report", self.finetuned],
            "check": ["data", "check", self.coco],
            "list": ["list", "tasks"],
        }[verb]  # fmt: skip

    def resume(self, verb: str, out: Path) -> list[str]:
        """Return a command line that goes on with a run."""
        return [verb, "--resume", str(out)]


def weights_of(out: Path) -> bytes:
    """Return the bytes of all weights of a finished run; the header beside them also states the number of workers."""
    from ssldet.engine.checkpoint import load_weights

    _, state = load_weights(out / "weights" / "model.safetensors")
    return b"".join(state[name].numpy().tobytes() for name in sorted(state))


def make(folder: Path) -> World:
    """Make the world, which also imports all that verbs import."""
    world = World(folder)
    write_shapes(folder / "made", images=6, seed=3, size=48)
    cli.main(world.words("pretrain", folder / "pre"))
    cli.main(world.words("finetune", folder / "fine"))
    return world
