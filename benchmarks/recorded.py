"""name of a record -> runs behind figures of the documentation that no suite has, made by the verbs as by a user.

`python -m benchmarks record` makes them and writes `benchmarks/results/recorded.json`, from which tables are written.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import hardware
from benchmarks.suites.parts import recipe
from downstream.annotations.shapes import write_shapes
from pretext.joint import Joint
from ssldet.disk import Disk, write_whole
from ssldet.engine.run import Run
from ssldet.errors import ConfigError, suggest
from ssldet.recipe import override
from ssldet.regular import read_text
from ssldet.verbs import Trained, finetune, pretrain

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Where runs are made, and on what.

    Attributes:
        folder: Of runs and generated sets; must not have held any before.
        places: Name -> data specification; see `RECORDS` for the names.
        most_steps: Steps after which any run ends, to rehearse; `None` takes those of the record.
    """

    folder: Path
    places: Mapping[str, str] = field(default_factory=dict)
    most_steps: int | None = None

    def scenes(self, images: int, seed: int, **look: Any) -> Path:
        """Return the folder of generated scenes, drawn unless they were."""
        place = self.folder / f"scenes-{images}-{seed}"
        if not place.exists():
            write_shapes(place, images=images, seed=seed, **look)
        return place

    def pretrain(self, name: str, run: Run, images: str, steps: int, **choices: Any) -> Trained:
        """Pretrain as `ssldet.pretrain` does, in a folder of that name."""
        return pretrain(images, recipe=run, steps=self._steps(steps), out=self.folder / name, **choices)

    def finetune(self, name: str, start: Trained | None, run: Run, data: str, steps: int, **choices: Any) -> Trained:
        """Fine-tune as `ssldet.finetune` does, in a folder of that name."""
        place = None if start is None else start.path
        return finetune(place, data, recipe=run, steps=self._steps(steps), out=self.folder / name, **choices)

    def _steps(self, steps: int) -> int:
        return steps if self.most_steps is None else min(steps, self.most_steps)


def collapse(recorder: Recorder) -> Iterator[Row]:
    """Train `joint/tiny` for 60 steps on few scenes with and without what holds a collapse off."""
    base = recipe("joint/tiny")
    assert isinstance(base.task, Joint)
    usual = {"task.jitter": base.task.view_jitter, "data.batch_size": 8, "log_every": 1, "data.held_out": 0.0}
    base = override(base, usual)
    images = str(recorder.scenes(24, 0, hues=True) / "images")
    ways: dict[str, dict[str, object]] = {
        "neither: `task.detach_target=false`, `task.contrast_weight=0`": {
            "task.detach_target": False,
            "task.contrast_weight": 0.0,
        },
        "contrast alone: `task.detach_target=false`": {"task.detach_target": False},
        "targets of the momentum backbone alone: `task.contrast_weight=0`": {"task.contrast_weight": 0.0},
        "both": {},
    }
    for place, (title, changes) in enumerate(ways.items()):
        run = recorder.pretrain(f"collapse-{place}", override(base, changes), images, 60)
        steps = [line for line in run.metrics if "metric/feature_std" in line]
        for when, line in (("first step", steps[0]), ("last step", steps[-1])):
            spread, rank = (line[f"metric/{name}"] for name in ("feature_std", "effective_rank"))
            yield {"run": title, "when": when, "feature_std": spread, "effective_rank": rank}


def one_shot(recorder: Recorder) -> Iterator[Row]:
    """Train `one_shot/tiny` on generated scenes, `triangle` held out; ask for classes that are there, and for all."""
    look = {"classes": ("circle", "square", "triangle", "star"), "objects": (2, 3), "hues": True}
    train, others = (
        f"coco:{recorder.scenes(count, seed, **look)}/instances.json" for count, seed in ((300, 5), (100, 6))
    )
    small = {"data.batch_size": 16}
    pretrained = recorder.pretrain("one-shot-pre", override(recipe("random_query_patch/tiny"), small), train, 600)
    base = override(recipe("one_shot/tiny"), small | {"optim.lr": 1e-3})
    arms = (("scratch", None, 0.3, 600), ("pretrained", pretrained, 0.0, 600), ("pretrained", pretrained, 0.3, 900))
    for place, (title, start, share, steps) in enumerate(arms):
        run = override(base, {"task.absent_share": share})
        tuned = recorder.finetune(f"one-shot-{place}", start, run, train, steps)
        yield {"start": title, "absent_share": share, "steps": steps} | _asked(
            tuned, {"train": train, "others": others}
        )


def one_shot_cards(recorder: Recorder) -> Iterator[Row]:
    """Train `one_shot/small` at 160 pixels on photographs of cards, `nine` and `king` held out."""
    train, val = recorder.places["cards"], recorder.places["cards_val"]
    sizes = {"task.scales": (160,), "task.max_size": 160, "task.eval_scale": 160, "data.canvas_multiple": 32}
    run = override(recipe("one_shot/small"), sizes | {"task.unseen": ("nine", "king")})
    patches = {"task.image_sides": (120, 140, 160), "task.longest_side": 200, "task.eval_side": 160}
    patches |= {"data.canvas_multiple": 32}
    pretrained = recorder.pretrain("cards-pre", override(recipe("random_query_patch/small"), patches), train, 300)
    for title, start in (("scratch", None), ("pretrained", pretrained)):
        tuned = recorder.finetune(f"cards-{title}", start, run, train, 600)
        yield {"start": title, "steps": 600} | _asked(tuned, {"train": train, "others": val})


def _asked(tuned: Trained, sets: Mapping[str, str]) -> Row:
    """Return AP50 by set for classes that are in the image, and where every class is asked for in every image."""
    found: Row = {}
    for place, data in sets.items():
        for asked in ("present", "all"):
            results = tuned.evaluate(data, overrides={"task.absent": asked == "all"}, batch_size=8)
            found |= {f"{place}_{asked}_{kind}": results[f"AP50_{kind}"] for kind in ("seen", "unseen")}
    return found


def panoptic(recorder: Recorder) -> Iterator[Row]:
    """Train boxes and then masks on generated scenes: ten that are memorised, and 300 measured on 60 others."""
    for count, steps, batch, flip in ((10, (500, 400), 10, 0.0), (300, (1000, 400), 16, 0.5)):
        train, others = (
            f"panoptic:{recorder.scenes(images, seed, stuff=True, hues=True)}/panoptic.json"
            for images, seed in ((count, 3), (60, 4))
        )
        changes = {"data.batch_size": batch, "task.flip": flip}
        boxes, masks = (override(recipe(f"panoptic/{name}"), changes) for name in ("tiny-boxes", "tiny"))
        taught = recorder.finetune(f"boxes-{count}", None, boxes, train, steps[0])
        whole = recorder.finetune(f"masks-{count}", taught, masks, train, steps[1])
        results = whole.evaluate(train if count == 10 else others, batch_size=8)
        yield {
            "images": count,
            "measured_on": "the same" if count == 10 else "60 others",
            "steps": list(steps),
            "PQ": results["PQ"],
            "PQ_things": results["things"]["PQ"],
            "PQ_stuff": results["stuff"]["PQ"],
            "AP_mask": results["segm"]["AP"],
        }


def backbones(recorder: Recorder) -> Iterator[Row]:
    """Train backbones alone on photographs in one folder per class, and ask nearest neighbours for the class."""
    photos = recorder.places["photos"]
    for name, steps in (("swav/tiny", 400), ("moco_v2/tiny", 200), ("dino/tiny", 200)):
        run = override(recipe(name), {"evaluate_every": 0})
        # A rate so low that nothing changes: what fresh weights know.
        still = recorder.pretrain(
            f"{name.replace('/', '-')}-fresh", override(run, {"optim.lr": 1e-12}), photos, 1, val=photos
        )
        taught = recorder.pretrain(name.replace("/", "-"), run, photos, steps, val=photos)
        fresh, learned = (one.results for one in (still, taught))
        yield {
            "recipe": name,
            "steps": steps,
            "fresh": fresh["knn_top1"],
            "learned": learned["knn_top1"],
            "chance": learned["knn_chance"],
        }


RECORDS: Mapping[str, tuple[Callable[[Recorder], Iterable[Row]], tuple[str, ...]]] = {
    "collapse": (collapse, ()),
    "one_shot": (one_shot, ()),
    "one_shot_cards": (one_shot_cards, ("cards", "cards_val")),
    "panoptic": (panoptic, ()),
    "backbones": (backbones, ("photos",)),
}
"""Name -> what makes its rows, and the data that it needs by name: labelled photographs of cards and some others,
and photographs as `folders:ROOT`."""


def record(out: Path, recorder: Recorder, only: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """Make records, one after the other, and write a file after each; those of earlier calls stay in it.

    Args:
        out: JSON file.
        recorder: Where runs are made.
        only: Names of records; empty makes all.

    Yields:
        The name of a record and one of its rows.

    Raises:
        ConfigError: There is no such record, or its data were not given; nothing was made then.
    """
    wrong = [f"--only: no record {name!r}{suggest(name, list(RECORDS))}" for name in only if name not in RECORDS]
    asked = {name: RECORDS[name] for name in only or RECORDS if name in RECORDS}
    lacking = sorted({place for _, needed in asked.values() for place in needed if place not in recorder.places})
    if wrong := wrong + [f"{place}: not given; add --data {place}=SPECIFICATION" for place in lacking]:
        raise ConfigError(wrong)
    for name, (rows_of, _) in asked.items():
        rows: list[Row] = []
        for row in rows_of(recorder):
            rows.append(row)
            yield name, row
        entry = {"machine": hardware() | {"torch": torch.__version__, "threads": torch.get_num_threads()}, "rows": rows}
        document = json.loads(read_text(out)) if out.exists() else {}
        write_whole(out, (json.dumps(document | {name: entry}, indent=1) + "\n").encode(), Disk())
