"""Our detector with a reference file's weights answers as the authors' own code did, layer by layer."""

import json
from argparse import Namespace
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from pretext.random_query_patch import PatchDetection, RandomQueryPatch, draw_boxes
from ssldet.detectors.base import DetectorConfig
from ssldet.losses.criterion import Criterion
from ssldet.losses.terms import BoxGIoUTerm, BoxL1Term, ClassTerm
from ssldet.matching import BoxGIoUCost, BoxL1Cost, ClassCost, Matcher
from ssldet.nn.position import SinePosition
from ssldet.postprocess import detections
from ssldet.recipe import from_document
from ssldet.types import Targets
from ssldet.weights.detr import detector_from_file, from_detr, recognise, to_detr
from tests.oracles.named import CASES, boxes, canvas, kept, labels, patches, weights

TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}
"""Two ways to add up the same numbers in 32 bits differ by 2e-5 in logits of about 8."""
TERMS = {"class": "loss_ce", "box_l1": "loss_bbox", "box_giou": "loss_giou", "reconstruction": "loss_feature"}
HEADS = PatchDetection.detr_names
UPDETR = [name for name, case in CASES.items() if case.project == "updetr"]
MODES = [(name, "eval") for name in CASES] + [(name, "masked") for name in UPDETR]


@cache
def recorded(name):
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())


@cache
def reference_state(name):
    return weights({key: torch.Size(shape) for key, shape in recorded(name)["state"].items()})


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@cache
def model(name):
    """Return the objective (UP-DETR) or detector in an objective's clothes (DETR), with the reference's weights."""
    case, state = CASES[name], from_detr(reference_state(name), HEADS)
    known = recognise(reference_state(name), heads=case.heads, output_stride=16 if case.dilation else 32)
    detector = replace(known.config, dropout=0.0).build()
    task = RandomQueryPatch(num_patches=case.patches, patch_size=case.patch_size, freeze_backbone=False)
    if case.project == "updetr":
        objective = task.objective(detector)
        objective.load_state_dict(state, strict=True)
        return objective
    costs = ClassCost(), BoxL1Cost(), BoxGIoUCost()
    terms = ClassTerm(), BoxL1Term(), BoxGIoUTerm()
    detector.load_state_dict({key.removeprefix("detector."): value for key, value in state.items()}, strict=True)
    return SimpleNamespace(detector=detector, criterion=Criterion(Matcher(costs, scope="global"), terms))


@cache
def ask(name, mode):
    """Return predictions and targets of one recorded pass."""
    case, objective = CASES[name], model(name)
    pixels, padding = canvas(case)
    detector = objective.detector.train(mode != "eval")
    wanted = [Targets(boxes=b, labels=n) for b, n in zip(boxes(case), labels(case), strict=True)]
    if case.project == "detr":
        return detector(pixels, padding), wanted
    features = detector.features(patches(case).flatten(0, 1)).mean((2, 3)).unflatten(0, (len(pixels), -1))
    asking = objective.patch_queries.train(mode != "eval")
    asking.mask_ratio = 0.5 if mode == "masked" else 0.0
    with mock.patch.object(torch, "rand", return_value=kept(case).T.float()):
        queries = asking(features, detector.default_queries(1))
    described = [replace(one, embeddings=row.detach()) for one, row in zip(wanted, features, strict=True)]
    return detector(pixels, padding, queries), described


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=ours.dtype), **TOLERANCE)


def assert_like(ours, summary):
    assert list(ours.shape) == summary["shape"]
    flat = ours.detach().double().flatten()
    torch.testing.assert_close(flat.sum().item(), summary["sum"], rtol=1e-4, atol=1e-5 * summary["abs_sum"])
    torch.testing.assert_close(flat.abs().sum().item(), summary["abs_sum"], rtol=1e-5, atol=0)
    torch.testing.assert_close(flat[:: summary["every"]].tolist(), summary["sample"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["detr-post-norm", "detr-dc5", "updetr-pre-norm"])
def test_files_of_the_reference_load_by_themselves(name, tmp_path):
    case, path = CASES[name], tmp_path / "checkpoint.pth"
    options = Namespace(nheads=case.heads, dilation=case.dilation)
    torch.save({"model": reference_state(name), "args": options, "epoch": 3}, path)
    detector, heads, document = detector_from_file(path, HEADS)
    config = from_document(DetectorConfig, document)
    assert (config.width, config.num_queries, config.num_classes) == (case.width, case.queries, case.classes)
    assert (config.encoder_layers, config.decoder_layers) == (case.encoder_layers, case.decoder_layers)
    assert (config.pre_norm, config.heads, config.feedforward) == (case.pre_norm, case.heads, case.ffn)
    assert (config.backbone.name, config.backbone.output_stride) == (case.backbone, 16 if case.dilation else 32)
    assert bool(heads) == (case.project == "updetr")
    for ours, theirs in zip(detector.state_dict().items(), model(name).detector.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_logits_and_boxes_of_all_layers(name, mode):
    predictions, _ = ask(name, mode)
    assert_close(predictions.logits.detach(), recorded(name)[mode]["logits"])
    assert_close(predictions.boxes.detach(), recorded(name)[mode]["boxes"])


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_matches_of_all_layers(name, mode):
    predictions, wanted = ask(name, mode)
    matches = model(name).criterion.matcher(predictions, wanted)
    first = torch.tensor([0, *(len(one) for one in wanted)]).cumsum(0).tolist()
    ours = {
        *zip(*(part.tolist() for part in (matches.layer, matches.image, matches.query, matches.target)), strict=True)
    }
    theirs = {
        (layer, image, query, target + first[image])
        for layer, images in enumerate(recorded(name)[mode]["matches"])
        for image, pairs in enumerate(images)
        for query, target in zip(*pairs, strict=True)
    }
    assert ours == theirs


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_losses_of_all_layers_and_watched_numbers(name, mode):
    losses, oracle = model(name).criterion(*ask(name, mode)), recorded(name)[mode]
    assert {TERMS[term] for term in losses.terms} == oracle["terms"].keys()
    for term, value in losses.terms.items():
        assert_close(value.detach(), oracle["terms"][TERMS[term]])
    torch.testing.assert_close(losses.total.item(), oracle["total"], rtol=1e-5, atol=0)
    # The reference states percentages, and the cardinality error of all layers.
    torch.testing.assert_close(losses.metrics["class_error"].item() * 100, oracle["class_error"], rtol=1e-5, atol=1e-5)
    assert losses.metrics["cardinality_error"].item() == pytest.approx(oracle["cardinality_error"][-1])


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_gradients_of_everything_but_the_backbone(name, mode):
    objective = model(name)
    objective.detector.zero_grad()
    if CASES[name].project == "updetr":
        objective.zero_grad()
    objective.criterion(*ask(name, mode)).total.backward()
    prefix = "" if CASES[name].project == "updetr" else "detector."
    holder = objective if not prefix else objective.detector
    grads = {prefix + key: value.grad for key, value in holder.named_parameters() if value.grad is not None}
    norms = {key: grad.double().norm().item() for key, grad in to_detr(grads, HEADS).items()}
    oracle = recorded(name)[mode]["gradients"]
    assert oracle.keys() <= norms.keys()
    for key, theirs in oracle.items():
        assert norms[key] == pytest.approx(theirs, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("name", UPDETR)
def test_training_without_masking_is_the_same_as_evaluation(name):
    losses = model(name).criterion(*ask(name, "train"))
    torch.testing.assert_close(losses.total.item(), recorded(name)["train"]["total"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", UPDETR)
def test_evaluation_with_fewer_patches(name):
    case, objective = CASES[name], model(name)
    detector, (pixels, padding) = objective.detector.eval(), canvas(case)
    few = patches(case)[:, :2]
    features = detector.features(few.flatten(0, 1)).mean((2, 3)).unflatten(0, few.shape[:2])
    queries = objective.patch_queries.eval()(features, detector.default_queries(1))
    predictions = detector(pixels, padding, queries)
    assert_close(predictions.logits.detach(), recorded(name)["fewer"]["logits"])
    assert_close(predictions.boxes.detach(), recorded(name)["fewer"]["boxes"])


@pytest.mark.parametrize("name", UPDETR)
def test_rebuilt_and_true_patch_features(name):
    predictions, wanted = ask(name, "eval")
    assert_like(model(name).reconstruction(predictions.states), recorded(name)["eval"]["features"])
    assert_like(torch.cat([one.embeddings for one in wanted]), recorded(name)["eval"]["patch_features"])


def test_last_level_of_the_backbone(name):
    assert_like(model(name).detector.features(canvas(CASES[name])[0]), recorded(name)["backbone"])


def test_position_encoding_of_a_padded_mask(name):
    cells = canvas(CASES[name])[1][:, ::16, ::16]
    ours = SinePosition(CASES[name].width)(cells).permute(0, 3, 1, 2)
    assert_like(ours, recorded(name)["position"])


def test_detections_in_pixels_of_the_original(name):
    predictions, _ = ask(name, "eval")
    found = detections(predictions, torch.tensor(CASES[name].original_sizes))
    for ours, theirs in zip(found, recorded(name)["detections"], strict=True):
        torch.testing.assert_close(ours.scores, torch.tensor(theirs["scores"]), **TOLERANCE)
        torch.testing.assert_close(ours.boxes, torch.tensor(theirs["boxes"]), rtol=1e-5, atol=1e-2)
        assert ours.labels.tolist() == theirs["labels"]


def test_the_names_map_back_onto_the_reference(name):
    case, objective = CASES[name], model(name)
    prefix = "" if case.project == "updetr" else "detector."
    holder = objective.detector if prefix else objective
    back = to_detr({prefix + key: value for key, value in holder.state_dict().items()}, HEADS)
    reference = reference_state(name)
    assert back.keys() == reference.keys()
    assert all(torch.equal(back[key], reference[key]) for key in reference)


def test_difference_patches_reach_the_right_and_the_bottom_border(generator):
    # The reference draws the corner from a half-open range, so that its patches end one pixel before the border.
    corners = torch.cat([draw_boxes(RandomQueryPatch(), 24, 32, generator)[:, 2:] for _ in range(50)])
    assert corners.max(0).values.tolist() == [32, 24]


def test_difference_many_patches_of_few_queries_stay_finite():
    # The reference fills its attention mask for N/M groups instead of M; with more it answers NaN.
    case = replace(CASES["updetr-pre-norm"], patches=6)
    detector = model("updetr-pre-norm").detector.eval()
    objective = RandomQueryPatch(num_patches=6).objective(detector).eval()
    features = detector.features(patches(case).flatten(0, 1)).mean((2, 3)).unflatten(0, (3, 6))
    queries = objective.patch_queries(features, detector.default_queries(1))
    predictions = detector(*canvas(case), queries)
    assert predictions.boxes.isfinite().all()
    assert (predictions.boxes[-1, 0, 0] - predictions.boxes[-1, 0, -1]).abs().max() > 1e-4
