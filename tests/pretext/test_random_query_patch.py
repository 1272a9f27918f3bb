from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from pretext.random_query_patch import RandomQueryPatch, draw_boxes
from pretext.recipes import random_query_patch as recipes
from ssldet.boxes import cxcywh_to_xyxy, to_absolute
from ssldet.data.collate import collate
from ssldet.data.photometric import Jitter
from ssldet.detectors.deformable_detr import DeformableDETRConfig
from ssldet.detectors.detr import DETRConfig
from ssldet.engine.run import Run
from ssldet.errors import ConfigError
from ssldet.losses.terms import FeatureReconstruction
from ssldet.nn.backbones import BackboneConfig
from ssldet.patches import cut, pooled, squeeze
from ssldet.recipe import check, from_document, to_document
from ssldet.task import learning_sections
from ssldet.types import Matches, Predictions, Sample, Targets, concatenate

TASK = RandomQueryPatch(num_patches=3, patch_size=16, image_sides=(32, 40), longest_side=64, eval_side=48)
DETR = DETRConfig(
    backbone=BackboneConfig(name="tiny", frozen_stages=0, tiny_channels=(4, 6, 8)),
    num_classes=2,
    num_queries=12,
    width=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
)
DEFORMABLE = DeformableDETRConfig(
    backbone=DETR.backbone,
    num_queries=12,
    width=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
    backbone_levels=2,
    extra_levels=0,
    refine_boxes=True,
)


def photo(height=50, width=70, seed=0, key="a"):
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    empty = Targets(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    return Sample(image=image, targets=empty, key=key, original_size=(height, width))


def batch(task=TASK, training=True):
    views = task.views(training=training)
    samples = [photo(), photo(64, 45, seed=1, key="b")]
    return collate([views(sample, torch.Generator().manual_seed(n)) for n, sample in enumerate(samples)])


def objective(task=TASK, detector=DETR):
    torch.manual_seed(0)
    return task.objective(detector.build())


def test_boxes_keep_the_limits_and_reach_every_border(generator):
    boxes = draw_boxes(replace(TASK, num_patches=4000), 30, 20, generator)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert {int(width.min()), int(width.max())} == {8, 12}
    assert {int(height.min()), int(height.max())} == {8, 22}
    assert boxes[:, :2].min(0).values.tolist() == [0, 0]
    assert boxes[:, 2:].max(0).values.tolist() == [20, 30]


def test_sides_and_places_are_drawn_evenly(generator):
    boxes = draw_boxes(replace(TASK, num_patches=60_000), 30, 30, generator)
    width = boxes[:, 2] - boxes[:, 0]
    assert ((width.bincount()[8:].float() / len(boxes) - 1 / 15).abs() < 0.006).all()
    places = boxes[width == 20, 0].bincount().float()
    assert len(places) == 11
    assert (places / places.sum() - 1 / 11).abs().max() < 0.02


@pytest.mark.parametrize(("extent", "sides"), [((17, 17), (8, 9)), ((16, 16), (8, 8)), ((5, 5), (5, 5))])
def test_small_images_give_what_they_can(extent, sides, generator):
    boxes = draw_boxes(replace(TASK, num_patches=300), *extent, generator)
    width = boxes[:, 2] - boxes[:, 0]
    assert (int(width.min()), int(width.max())) == sides


def test_shares_limit_the_sides(generator):
    boxes = draw_boxes(replace(TASK, num_patches=3000, smallest_share=0.4, largest_share=0.6), 100, 50, generator)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min(0).values.tolist() == [20, 40]
    assert sides.max(0).values.tolist() == [30, 60]


def test_views_cut_from_the_original_pixels_and_keep_the_place():
    sample = photo()
    made = TASK.views()(sample, torch.Generator().manual_seed(0))
    boxes = to_absolute(made.targets.boxes, (50, 70)).round().long()
    assert torch.equal(made.problem.pixels, cut(sample.image, boxes.to(torch.int64), 16))
    x0, y0, x1, y1 = boxes[1].tolist()
    assert torch.equal(made.problem.pixels[1], squeeze(sample.image[:, y0:y1, x0:x1], 16))
    assert min(made.image.shape[1:]) in {32, 40}
    assert made.targets.groups.tolist() == [0, 1, 2]


def test_evaluation_sees_no_jitter_and_one_size():
    made = TASK.views(training=False)(photo(), torch.Generator().manual_seed(0))
    assert made.problem.jitter is None
    assert made.image.shape == (3, 46, 64)
    assert TASK.views()(photo(), torch.Generator().manual_seed(0)).problem.jitter is not None
    quiet = replace(TASK, jitter=Jitter(probability=0.0, grey=0.0, blur=0.0))
    assert quiet.views()(photo(), torch.Generator().manual_seed(0)).problem.jitter is None


def test_jitter_changes_the_patches_and_nothing_else():
    model, made = objective().eval(), batch()
    plain = model.describe(made.problem.pixels)[-1]
    changed = model.describe(made.problem.pixels, made.problem.jitter)[-1]
    assert plain.shape == (2, 3, 18)
    assert not torch.allclose(plain, changed)
    one = model.describe(made.problem.pixels[:1], made.problem.jitter[:1])[-1]
    assert torch.allclose(one, changed[:1], atol=1e-5)


@pytest.mark.parametrize(("detector", "count"), [(DETR, 1), (DEFORMABLE, 1), (replace(DEFORMABLE, two_stage=True), 2)])
def test_a_patch_is_described_by_the_levels_that_proposals_are_made_of(detector, count):
    model, made = objective(detector=detector).eval(), batch()
    normalised = model.detector.normalise(made.problem.pixels[1])
    described, levels = model.describe(made.problem.pixels), model.detector.levels(normalised)
    assert len(described) == count < len(levels)
    for means, cells in zip(described, levels[-count:], strict=True):
        assert torch.allclose(means[1], cells.mean((2, 3)), atol=1e-6)
    assert torch.allclose(described[-1][1], model.detector.features(normalised).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("detector", [DETR, DEFORMABLE, replace(DEFORMABLE, two_stage=True)])
def test_a_feature_map_describes_patches_and_is_computed_once(detector, monkeypatch):
    task = replace(TASK, patch_source="feature_map")
    model, asked = objective(task, detector), batch(task)
    assert asked.problem.jitter is None
    backbone = model.detector.backbone
    compute, computed = backbone._levels, []
    monkeypatch.setattr(
        backbone, "_levels", lambda images, count: computed.append(images.shape) or compute(images, count)
    )
    assert model(asked).total.isfinite()
    model.answer(asked)
    _, features = model.describe_all(asked)
    assert computed == [asked.images.shape] * 3
    assert features.shape == (len(asked), task.num_patches, model.detector.feature_channels)


def test_what_is_pooled_is_the_mean_of_the_map_under_a_patch():
    asked = batch()
    assert asked.sizes[0, 1] != asked.sizes[1, 1]
    canvas = asked.images.shape[3]
    ramp = (torch.arange(12) + 0.5).expand(2, 5, 9, 12).contiguous()
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.4, 0.6, 0.1, 0.1], [0.6, 0.5, 0.2, 0.6]])
    found = pooled(ramp, asked, [cxcywh_to_xyxy(boxes)] * 2)
    assert found.shape == (2, 3, 5)
    for row in range(2):
        middles = boxes[:, 0] * asked.sizes[row, 1] / canvas * 12
        torch.testing.assert_close(found[row], middles[:, None].expand(3, 5), atol=1e-4, rtol=0)


def test_a_feature_map_needs_a_frozen_backbone():
    with pytest.raises(ConfigError, match=r"patch_source: .*freeze_backbone"):
        check(replace(TASK, patch_source="feature_map", freeze_backbone=False))


def test_what_trains_and_what_is_handed_over():
    assert TASK.rests("backbone")
    assert not replace(TASK, freeze_backbone=False).rests("backbone")
    assert not TASK.stays_behind("backbone")
    assert not TASK.rests("class_head")
    assert TASK.stays_behind("class_head")


def test_every_patch_asks_for_the_last_class_with_its_own_feature_and_group():
    model, made = objective(), batch()
    features = model.describe(made.problem.pixels)[-1]
    wanted = model._targets(made.targets, features)
    assert [entry.labels.tolist() for entry in wanted] == [[1, 1, 1], [1, 1, 1]]
    assert torch.equal(wanted[1].embeddings, features[1])
    without = objective(replace(TASK, reconstruction=False))
    assert without._targets(made.targets, features)[0].embeddings is None


@pytest.mark.parametrize("scope", ["global", "own_group"])
def test_matching_keeps_to_the_group_only_where_asked(scope):
    model, made = objective(replace(TASK, matching=scope)), batch()
    predictions = Predictions(
        logits=torch.zeros(1, 2, 12, 3),
        boxes=torch.rand(1, 2, 12, 4, generator=torch.Generator().manual_seed(0)) * 0.1,
        states=torch.zeros(1, 2, 12, 16),
        groups=torch.arange(3).repeat_interleave(4),
    )
    # Query 11, of the last patch, lies exactly where the first patch was cut.
    predictions.boxes[0, :, 11] = torch.stack([entry.boxes[0] for entry in made.targets])
    matches = model.criterion.matcher(
        predictions, model._targets(made.targets, model.describe(made.problem.pixels)[-1])
    )
    asker = matches.query[matches.target % 3 == 0] // 4
    assert asker.tolist() == ([0, 0] if scope == "own_group" else [2, 2])


@pytest.mark.parametrize(("no_match", "weight"), [("constant", 0.1), ("M/N", 3 / 12)])
def test_the_weight_of_queries_without_match(no_match, weight):
    term = objective(replace(TASK, no_match=no_match)).criterion.terms[0]
    assert term.no_object_weight == pytest.approx(weight)


def test_weights_of_terms_and_costs_are_the_tasks():
    task = replace(TASK, class_weight=1.5, box_l1_weight=4.0, box_giou_weight=3.0, reconstruction_weight=0.5)
    criterion = objective(task).criterion
    assert [term.weight for term in criterion.terms] == [1.5, 4.0, 3.0, 0.5]
    assert [cost.weight for cost in criterion.matcher.costs] == [1.5, 4.0, 3.0]
    assert [term.name for term in objective(replace(TASK, reconstruction=False)).criterion.terms] == [
        "class",
        "box_l1",
        "box_giou",
    ]


def test_reconstruction_is_the_papers_equation():
    generator = torch.Generator().manual_seed(3)
    states, wanted = torch.randn(2, 2, 5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    predictions = Predictions(logits=torch.zeros(2, 2, 5, 2), boxes=torch.zeros(2, 2, 5, 4), states=states)
    targets = Targets(boxes=torch.zeros(3, 4), labels=torch.zeros(3, dtype=torch.int64), embeddings=wanted)
    matches = Matches(
        layer=torch.tensor([0, 1, 1]),
        image=torch.tensor([0, 0, 1]),
        query=torch.tensor([4, 2, 0]),
        target=torch.tensor([1, 0, 2]),
    )
    found = FeatureReconstruction(head=torch.nn.Identity())(predictions, targets, matches, 3.0)
    distance = [
        2 - 2 * F.cosine_similarity(states[layer, image, query], wanted[target], dim=0)
        for layer, image, query, target in ((0, 0, 4, 1), (1, 0, 2, 0), (1, 1, 0, 2))
    ]
    assert torch.allclose(found, torch.stack([distance[0], distance[1] + distance[2]]) / 3, atol=1e-6)
    assert FeatureReconstruction(head=torch.nn.Identity())(
        predictions, replace(targets, embeddings=2 * wanted), matches, 3.0
    ).tolist() == pytest.approx(found.tolist())


@pytest.mark.parametrize("detach", [True, False])
def test_the_target_is_detached_where_asked(detach, monkeypatch):
    model = objective(replace(TASK, detach_target=detach, freeze_backbone=False))
    model.detector.train_only(learning_sections(model.task, model.detector))
    seen = []
    whole = model.criterion
    monkeypatch.setattr(model, "criterion", lambda said, wanted: seen.append(wanted) or whole(said, wanted))
    model(batch())
    assert seen[0][0].embeddings.requires_grad is not detach


def test_the_answer_to_a_patch_is_the_most_confident_of_its_own_queries():
    model, made = objective().eval(), batch(training=False)
    every = model.answers(made, model.describe(made.problem.pixels))
    for found, answers in zip(model.answer(made), every, strict=True):
        assert found.labels.tolist() == [0, 1, 2]
        for number in range(3):
            own = answers.labels == number
            assert int(own.sum()) == 4
            assert found.scores[number] == answers.scores[own].max()
            assert found.boxes[number].tolist() in answers.boxes[own].tolist()


def test_localise_finds_the_same_as_answers_and_takes_any_number_of_patches():
    model, made = objective().eval(), batch(training=False)
    known = [made.problem.pixels[0, number] for number in range(3)]
    direct = model.answers(made, model.describe(made.problem.pixels))[0]
    found = model.localise(made, known)[0]
    assert torch.allclose(found.boxes, direct.boxes, atol=1e-4)
    rough = [photo(9 + number, 30, seed=number).image for number in range(5)]
    more = model.localise(made, rough)
    assert len(more) == 2
    assert more[0].labels.unique().tolist() == [0, 1, 2, 3, 4]
    assert len(more[0]) == 5 * 4


def test_the_probe_measures_without_training_anything():
    model = objective().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = model.probe([batch(), batch()])
    assert found.keys() == {"template_iou", "constant_iou"} == model.probe_meanings.keys()
    assert all(0 < value < 1 for value in found.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_single_query_patch_has_all_queries():
    task = replace(TASK, num_patches=1, matching="own_group")
    model = objective(task)
    assert torch.isfinite(model(batch(task)).total)
    assert len(model.eval().answer(batch(task, training=False))[0]) == 1


def test_what_does_not_fit_is_said_with_the_nearest_that_does():
    (line,) = replace(TASK, num_patches=5).problems_with(DETR)
    assert "num_patches" in line
    assert "choose 4 or 6 patches, or 10 or 15 queries" in line
    assert TASK.problems_with(DETR) == []
    with pytest.raises(ConfigError, match="smallest_share"):
        check(replace(TASK, smallest_share=0.7, largest_share=0.6))
    with pytest.raises(ConfigError, match="image_sides"):
        check(replace(TASK, image_sides=()))


def test_a_batch_without_patches_is_ours_to_mend():
    with pytest.raises(AssertionError, match="carry no patches"):
        objective()(replace(batch(), problem=None))


@cache
def run_of(name):
    return getattr(recipes, name)()


@pytest.mark.parametrize(
    "name", ["r50", "paper", "released", "tiny", "deformable_r50", "deformable_two_stage_r50", "deformable_tiny"]
)
def test_recipes_can_run_and_are_recorded_whole(name):
    run = run_of(name)
    check(run)
    assert from_document(Run, to_document(run)) == run


def test_the_released_recipe_is_the_field_defaults():
    assert run_of("released").task == RandomQueryPatch()
    assert run_of("released").detector.num_classes == 2
    assert 384 not in RandomQueryPatch().image_sides


def test_the_paper_states_what_the_code_leaves_out():
    task = run_of("paper").task
    assert (task.shuffle, task.no_match, task.masking, task.matching) == (True, "M/N", "patch", "global")
    assert 384 in task.image_sides


@pytest.mark.parametrize("name", ["small", "tiny", "deformable_tiny", "r50_own_groups"])
def test_recipes_for_small_machines_match_within_own_groups(name):
    assert run_of(name).task.matching == "own_group"


@pytest.mark.parametrize("name", ["released", "paper", "r50", "deformable_r50"])
def test_recipes_at_full_scale_match_as_the_authors_do(name):
    assert run_of(name).task.matching == "global"


def test_only_the_paper_has_jitter_as_strong_as_simclr():
    paper, released = run_of("paper").task.jitter, run_of("released").task.jitter
    assert (paper.brightness, paper.contrast, paper.saturation, paper.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (released.brightness, released.contrast, released.saturation, released.hue) == (0.4, 0.4, 0.4, 0.1)


def test_targets_of_a_batch_can_be_joined():
    model, made = objective(), batch()
    joined = concatenate(model._targets(made.targets, model.describe(made.problem.pixels)[-1]))
    assert joined.embeddings.shape == (6, 18)
