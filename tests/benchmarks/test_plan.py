import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.address import data_version
from benchmarks.comparing import compare
from benchmarks.cost import Forecast
from benchmarks.plan import plan_suite
from benchmarks.suite import ImagesOnDisk, Scale, Setting, Suite
from benchmarks.suites import SUITES, find_suite
from benchmarks.suites.detectors import FINETUNING
from downstream.annotations.shapes import write_shapes
from ssldet.errors import ConfigError, DataError
from ssldet.recipe import check, override
from tests.third_party.sketches.patch_transformer import PatchTransformerConfig

PLACES = [
    "imagenet",
    "voc_train",
    "voc_test",
    "coco_train",
    "coco_val",
    "panoptic_train",
    "panoptic_val",
    "images",
    "train",
    "val",
    "photos",
    "cards",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    write_shapes(folder, images=3, size=32)
    return dict.fromkeys([*PLACES, "cards_val"], f"coco:{folder / 'instances.json'}:{folder / 'images'}")


@pytest.mark.parametrize("scale", ["tiny", "full"])
@pytest.mark.parametrize("name", [name for name in SUITES if name != "smoke"])
def test_every_suite_can_be_planned_at_both_scales(name: str, scale: Scale, places: dict[str, str]) -> None:
    plan = plan_suite(find_suite(name, Setting(scale=scale, places=places, seeds=2)))
    assert {arm.method for arm in plan.arms if arm.jobs} >= {"none"}
    for arm in plan.arms:
        assert bool(arm.jobs) != bool(arm.missing)
    order = list(plan.jobs)
    for job in plan.jobs.values():
        check(job.run)
        assert job.steps > 0
        assert all(order.index(need) < order.index(job.address) for need in job.needs)


def test_one_pretraining_feeds_every_seed_and_suites_share_runs(suite: Suite) -> None:
    plan = plan_suite(suite)
    chains = [arm.jobs for arm in plan.arms if arm.method == "updetr"]
    assert len(chains) == 2
    assert len({chain[0] for chain in chains}) == 1
    assert len({chain[1] for chain in chains}) == 2
    several = plan_suite(replace(suite, pretrainings=2))
    assert len({arm.jobs[0] for arm in several.arms if arm.method == "updetr"}) == 2
    sixth, first = (plan_suite(find_suite(name, Setting())) for name in ("paper/table6", "paper/table1"))
    assert len(sixth.jobs.keys() & first.jobs.keys()) >= 7


def test_arms_differ_in_nothing_but_what_they_start_from(suite: Suite) -> None:
    plan = plan_suite(suite)
    last = {(arm.method, arm.seed): plan.jobs[arm.jobs[-1]] for arm in plan.arms if arm.jobs}
    for seed in suite.seeds:
        ours, theirs = last["updetr", seed], last["none", seed]
        assert ours.run == theirs.run
        assert (ours.start is None, theirs.start) == (False, None)
        assert ours.run.seed == seed


def test_each_detector_goes_its_own_road(suite: Suite) -> None:
    whole = find_suite("zoo/detectors", Setting())
    plan = plan_suite(whole)
    fine = {type(job.run.detector).__name__: job.run for job in plan.jobs.values() if job.purpose.verb == "finetune"}
    assert fine["DETRConfig"].optim.lr_sampling_factor == 1
    assert fine["DeformableDETRConfig"].optim.lr_sampling_factor == 0.1
    assert {run.budget.steps for run in fine.values()} == {FINETUNING}
    for job in plan.jobs.values():
        if job.purpose.verb == "pretrain":
            later = [other.run.detector for other in plan.jobs.values() if other.start == job.address]
            assert len(later) == 3
            assert {type(detector) for detector in later} == {type(job.run.detector)}
    assert len({job.title for job in plan.jobs.values()}) == len(plan.jobs), "two runs have one title"
    assert all(not job.purpose.model for job in plan_suite(suite).jobs.values())


def test_a_detector_without_a_backbone_stands_alone(suite: Suite) -> None:
    alone, task = PatchTransformerConfig(num_classes=3), suite.downstreams[0]
    backbone = replace(suite.methods[-1], missing="")
    both = replace(suite, detectors=(*suite.detectors, alone), methods=(*suite.methods[:-1], backbone))
    assert [type(model).__name__ for model in both.models()] == ["DETRConfig", "PatchTransformerConfig"]
    plan = plan_suite(both)
    reasons = {arm.missing for arm in plan.arms if arm.method == "backbone"}
    assert any("has no backbone to pretrain" in reason for reason in reasons)
    assert "" in reasons
    with pytest.raises(ConfigError, match="scenes: has stages of 'detre', and no such detector is compared"):
        replace(suite, downstreams=(replace(task, stages_of={"detre": task.stages}),)).check()


def test_an_address_knows_contents_and_not_places(suite: Suite, tmp_path: Path) -> None:
    write_shapes(tmp_path / "one", images=4, size=32)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write_shapes(tmp_path / "three", images=5, size=32)

    def addresses(folder: str, **changes: object) -> list[str]:
        spec = f"coco:{tmp_path / folder / 'instances.json'}:{tmp_path / folder / 'images'}"
        task = replace(suite.downstreams[0], train=ImagesOnDisk(name="mine", specs=(spec,)))
        task = replace(task, stages=tuple(override(run, changes) for run in task.stages))
        return list(plan_suite(replace(suite, downstreams=(task,))).jobs)

    assert addresses("one") == addresses("two")
    assert addresses("one") == addresses("one", **{"data.workers": 3, "log_every": 7, "checkpoint.keep": 4})
    assert not set(addresses("one")) & set(addresses("one", **{"optim.lr": 0.5})) - set(pretrainings(suite))
    assert set(addresses("one")) & set(addresses("three")) <= set(pretrainings(suite))


def pretrainings(suite: Suite) -> list[str]:
    return [address for address, job in plan_suite(suite).jobs.items() if job.purpose.verb == "pretrain"]


def test_rates_are_chosen_by_the_same_trials_for_every_method(suite: Suite) -> None:
    suite = replace(suite, rates=(0.1, 0.2))
    first = plan_suite(suite)
    assert all(arm.trial for arm in first.arms if arm.jobs)
    assert {(arm.method, arm.rate, arm.seed) for arm in first.arms if arm.jobs} == {
        (method, rate, 2) for method in ("none", "updetr") for rate in (0.1, 0.2)
    }
    best = {
        arm.jobs[-1]: (0.9 if (arm.method == "none") == (arm.rate == 0.1) else 0.1) for arm in first.arms if arm.jobs
    }
    second = plan_suite(suite, lambda address, metric: best[address])
    chosen = {arm.method: arm.rate for arm in second.arms if arm.jobs and not arm.trial}
    assert chosen == {"none": 0.1, "updetr": 0.2}
    # What arms are measured on chooses nothing.
    tuned = [second.jobs[arm.jobs[-1]] for arm in second.arms if arm.jobs and not arm.trial]
    tried = [second.jobs[arm.jobs[-1]] for arm in second.arms if arm.trial]
    assert all(job.val is not None and not job.run.data.held_out for job in tuned)
    assert all(job.val is None and job.run.data.held_out for job in tried)
    assert first.jobs.keys() <= second.jobs.keys()


def test_a_dry_run_writes_nothing_and_says_what_it_does_not_know(suite: Suite, tmp_path: Path) -> None:
    found = compare(suite, out=tmp_path / "out", dry_run=True)
    assert isinstance(found, Forecast)
    assert not (tmp_path / "out").exists()
    assert "5 runs of kinds that were never measured" in str(found)
    assert "2 rows: left out of this test" in str(found)
    assert data_version(suite.downstreams[0].train)[1] == 7


def test_all_data_sets_that_cannot_be_used_are_told_at_once(places: dict[str, str], tmp_path: Path) -> None:
    wrong = {"images": str(tmp_path / "photos"), "val": f"coco:{tmp_path / 'val.json'}:{tmp_path}"}
    with pytest.raises(DataError) as raised:
        compare("own_data", data=places | wrong, out=tmp_path / "out", dry_run=True)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["data images", "data val"]
    assert not (tmp_path / "out").exists()


def test_few_labels_are_shares_or_shots_and_self_training_sees_the_other_images(places: dict[str, str]) -> None:
    plan = plan_suite(find_suite("ours/few_labels", Setting(places=places, seeds=1)))
    shares = {
        task: {arm.fraction for arm in plan.arms if arm.downstream == task}
        for task in ("own", "ten_shots", "self_training")
    }
    assert shares == {"own": {0.01, 0.02, 0.05, 0.1}, "ten_shots": {1.0}, "self_training": {0.01, 0.02, 0.05, 0.1}}
    for job in plan.jobs.values():
        learns_from_both = job.run.task.needs.unlabelled
        assert (job.unlabelled is not None) == learns_from_both
        assert job.run.data.shots == (10 if job.purpose.on == "ten_shots" else 0)
    # On top of the same fine-tuning, which both tasks share.
    arms = {(arm.downstream, arm.method, arm.fraction): arm.jobs for arm in plan.arms}
    assert arms["self_training", "own_group", 0.1][:-1] == arms["own", "own_group", 0.1]


def test_a_detector_is_taught_once_and_goes_on_behind_the_backbone_of_the_suite(places: dict[str, str]) -> None:
    plan = plan_suite(find_suite("ours/backbone_swap", Setting(places=places, seeds=1)))
    arms = {arm.method: [plan.jobs[address] for address in arm.jobs] for arm in plan.arms}
    taught = arms["exchanged"][0]
    assert taught == arms["own_group"][0] == arms["distillation"][0]
    assert taught.run.detector.backbone.name == "tiny"
    assert not taught.exchange
    for stage, fine in (arms["own_group"][1:], arms["distillation"][1:]):
        assert (stage.start, stage.exchange) == (taught.address, True)
        assert stage.run.detector.backbone.name == "timm/tf_efficientnet_lite0"
        assert (fine.start, fine.exchange, fine.backbone) == (stage.address, False, None)
    fine = arms["exchanged"][1]
    assert (fine.start, fine.exchange) == (taught.address, True)
    assert fine.run.detector.backbone.weights == "imagenet"
    assert len(arms["backbone"]) == 1


def test_every_task_with_a_recipe_named_small_is_compared_on_the_same_detector(places: dict[str, str]) -> None:
    plan = plan_suite(find_suite("zoo/small", Setting(places=places, seeds=1)))
    by_task = {(arm.method, arm.downstream): [plan.jobs[address] for address in arm.jobs] for arm in plan.arms}
    arms = {method: [job.run for job in jobs] for (method, on), jobs in by_task.items() if jobs and on == "longer"}
    tasks = {"detreg", "dino", "distillation", "joint", "pseudo_boxes", "random_query_patch", "siamese_detr"}
    assert tasks | {"none", "backbone", "frozen"} == arms.keys()
    for method in arms:  # self-training and as many steps without images go on from the same fine-tuning
        assert by_task[method, "self_training"][:-1] == by_task[method, "own"] == by_task[method, "longer"][:-1]
    for method in tasks:  # all but DINO hand over more than a backbone, distillation its encoder
        pretraining, fine_tuning = by_task[method, "own"]
        assert (fine_tuning.start == pretraining.address) == (method != "dino")
        assert (fine_tuning.backbone == pretraining.address) == (method == "dino")
    fine = arms["backbone"][-1]
    for runs in arms.values():
        assert runs[-1].detector == fine.detector or runs[-1].detector.backbone.weights is None
        assert [run.budget.steps for run in runs] == [300] * (len(runs) - 1) + [200]
        assert all(run.detector.width == fine.detector.width for run in runs)
