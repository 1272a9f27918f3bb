"""What a recipe says of optimisation reaches detectron2 in its own terms, or is refused by the name of the field."""

import ast
from dataclasses import replace
from typing import Any

import pytest
import yaml

from downstream.export.detectron2.building import blueprint
from downstream.export.detectron2.schedule import differences, inexpressible, milestones, solver, warm_up
from downstream.export.detectron2.verbs import names, path_of
from ssldet.engine.optim import schedule
from ssldet.engine.run import OptimConfig
from ssldet.errors import ConfigError
from ssldet.verbs.choosing import resolve

YAMLS = [name for name in names() if name.endswith(".yaml")]
# detectron2's own values of what our files leave out.
DEFAULTS = {
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "GAMMA": 0.1,
    "RESCALE_INTERVAL": False,
    "BASE_LR_END": 0.0,
    "WARMUP_METHOD": "linear",
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        name: merged(base.get(name, {}), value) if isinstance(value, dict) else value for name, value in over.items()
    }


def loaded(name: str) -> dict[str, Any]:
    document = yaml.safe_load(path_of(name).read_text())
    below = document.pop("_BASE_", None)
    return merged(loaded(below) if below else {"SOLVER": DEFAULTS}, document)


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_file_has_the_schedule_of_its_recipe(name: str) -> None:
    document = loaded(name)
    run, given = resolve(document["MODEL"]["SSLDET"]["RECIPE"]), document["SOLVER"]
    assert differences(run, given, given["MAX_ITER"]) == []
    if run.optim.schedule == "step":
        assert ast.literal_eval(given["STEPS"]) == tuple(milestones(run.optim, given["MAX_ITER"]))
    assert given["IMS_PER_BATCH"] == run.data.batch_size
    if run.budget.steps:
        assert given["MAX_ITER"] == run.budget.steps


def test_a_cosine_is_never_a_constant_rate() -> None:
    run = resolve("detection/tiny")
    assert run.optim.schedule == "cosine"
    stated = solver(run, 1000)
    assert (stated["LR_SCHEDULER_NAME"], stated["RESCALE_INTERVAL"]) == ("WarmupCosineLR", True)
    dropped = stated | {"LR_SCHEDULER_NAME": "WarmupMultiStepLR", "WARMUP_ITERS": 0}
    lines = differences(run, dropped, 1000)
    assert lines == [
        "SOLVER.WARMUP_ITERS is 0, in the recipe 49",
        "SOLVER.LR_SCHEDULER_NAME is WarmupMultiStepLR, in the recipe WarmupCosineLR",
    ]


@pytest.mark.parametrize("warmup", [0, 1, 2, 50])
def test_a_linear_warm_up_has_the_same_rate_in_each_step(warmup: int) -> None:
    optim = OptimConfig(schedule="constant", warmup_steps=warmup)
    ours, (factor, length) = schedule(optim, 100), warm_up(optim)
    for step in range(100):
        # As detectron2 computes it: a line from `factor` to 1.
        theirs = 1.0 if step >= length else factor + (1 - factor) * step / length
        assert theirs == pytest.approx(ours(step), abs=1e-12)


def test_what_detectron2_lacks_is_refused_by_name_all_at_once() -> None:
    run = resolve("detection/tiny")
    assert inexpressible(run) == []
    other = replace(run.optim, ema=0.999, accumulate=4, optimizer="sgd")
    lines = inexpressible(replace(run, optim=other, precision="bf16"))
    assert [line.partition(":")[0] for line in lines] == [
        "optim.optimizer",
        "optim.accumulate",
        "optim.ema",
        "precision",
    ]
    assert lines[2].endswith("choose a recipe with optim.ema=0.0")


def test_fields_that_detectron2_decides_are_refused_as_overrides() -> None:
    fields = {"optim.schedule": "step", "budget.steps": "9", "task.flip": "0", "seed": "3"}
    with pytest.raises(
        ConfigError, match=r"(?s)optim\.schedule: .*lr_multiplier.*budget\.steps: .*train\.max_iter"
    ) as told:
        blueprint("detection/tiny", ("owl",), overrides=fields)
    assert "seed: has no effect" in str(told.value)
    assert "task.flip" not in str(told.value)


def test_no_clipping_stays_no_clipping() -> None:
    run = resolve("detection/tiny")
    assert solver(replace(run, optim=replace(run.optim, clip=0.0)), 10)["CLIP_GRADIENTS"] == {"ENABLED": False}
