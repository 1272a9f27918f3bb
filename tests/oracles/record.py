"""reference checkouts -> *.json: record what the authors' own code answers; needed only to renew the oracles.

    python tests/oracles/record.py detr ~/checkouts/detr
    python tests/oracles/record.py updetr ~/checkouts/up-detr

The checkouts stay as they are and none of their code is kept here. Nothing is downloaded: the one hub call that the
constructor would make is never reached, since backbones get no pretrained weights.
"""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from named import CASES, Case, boxes, canvas, images, kept, labels, patches, weights
from torch import Tensor, nn

HERE = Path(__file__).parent
COSTS = {"set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2}
TERMS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_feature": 1.0}


def options(case: Case) -> SimpleNamespace:
    """Return the command-line options that the reference's builders read."""
    return SimpleNamespace(
        backbone=case.backbone,
        dilation=case.dilation,
        lr_backbone=1e-5,
        masks=False,
        position_embedding="sine",
        hidden_dim=case.width,
        dropout=0.0,
        nheads=case.heads,
        dim_feedforward=case.ffn,
        enc_layers=case.encoder_layers,
        dec_layers=case.decoder_layers,
        pre_norm=case.pre_norm,
        **COSTS,
    )


def build(case: Case) -> nn.Module:
    """Return the reference's model with the named weights."""
    from models import backbone
    from models.detr import DETR
    from models.transformer import build_transformer

    given = options(case)
    parts: list[Any] = []
    with mock.patch.object(backbone, "is_main_process", lambda: False):
        if case.project == "updetr" and case.backbone == "resnet50":
            raise SystemExit("up-detr downloads weights for resnet50; record another backbone")
        parts = [backbone.build_backbone(given), build_transformer(given), case.classes, case.queries]
    if case.project == "updetr":
        from models.updetr import UPDETR

        model: nn.Module = UPDETR(*parts, aux_loss=True, feature_recon=True, mask_ratio=0.0, num_patches=case.patches)
    else:
        model = DETR(*parts, aux_loss=True)
    state = weights({name: value.shape for name, value in model.state_dict().items()})
    model.load_state_dict(state, strict=True)
    return model


def rounded(value: Tensor) -> Any:
    """Return nested lists at seven significant digits."""
    if value.dtype in (torch.int64, torch.bool):
        return value.tolist()
    if value.dim() == 0:
        return float(f"{value.item():.7g}")
    return [rounded(part) for part in value]


def summary(value: Tensor) -> dict[str, Any]:
    """Stand for a tensor too large to keep: its shape, two sums and every so-manyth number."""
    flat = value.detach().double().flatten()
    every = max(1, len(flat) // 24)
    return {
        "shape": list(value.shape),
        "sum": rounded(flat.sum()),
        "abs_sum": rounded(flat.abs().sum()),
        "every": every,
        "sample": rounded(flat[::every].float()),
    }


def layered(out: dict[str, Any], key: str) -> Tensor:
    """Return one output of all decoder layers, first to last."""
    return torch.stack([*(layer[key] for layer in out["aux_outputs"]), out[key]])


def matches(case: Case, criterion: nn.Module, out: dict[str, Any], wanted: list[dict[str, Tensor]]) -> list[Any]:
    """Return (queries, targets) by layer and image, and make sure that no match hangs on rounding."""
    found = []
    for layer in [*out["aux_outputs"], out]:
        pairs = criterion.matcher(layer, wanted)
        for trial in range(5):
            nudged = {key: value + 2e-4 * torch.randn_like(value) for key, value in layer.items() if "pred" in key}
            nudged["pred_boxes"] = nudged["pred_boxes"].clamp(1e-4, 1)
            again = criterion.matcher(nudged, wanted)
            if any(not torch.equal(a[0], b[0]) or not torch.equal(a[1], b[1]) for a, b in zip(pairs, again, strict=True)):
                raise SystemExit(f"a match hangs on rounding (trial {trial}); choose other inputs")
        found.append([[query.tolist(), target.tolist()] for query, target in pairs])
    return found


def losses(case: Case, model: nn.Module, out: dict[str, Any]) -> dict[str, Any]:
    """Return matches, loss terms by layer, watched numbers, and the gradient of the weighted sum."""
    from models.detr import SetCriterion
    from models.matcher import build_matcher

    names = ["labels", "boxes", "cardinality", *(["feature"] if case.project == "updetr" else [])]
    criterion = SetCriterion(case.classes, build_matcher(options(case)), {}, 0.1, names)
    wanted = [{"boxes": b, "labels": n} for b, n in zip(boxes(case), labels(case), strict=True)]
    measured = criterion(out, wanted)
    suffixes = [*(f"_{layer}" for layer in range(case.decoder_layers - 1)), ""]
    terms = {t: torch.stack([measured[t + s] for s in suffixes]) for t in TERMS if t in measured}
    total = sum(TERMS[name] * term.sum() for name, term in terms.items())
    model.zero_grad()
    total.backward()
    grads = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    heads = ("transformer", "class_embed", "bbox_embed", "query_embed", "input_proj", "patch2query", "feature_align")
    return {
        "matches": matches(case, criterion, out, wanted),
        "terms": {name: rounded(term.detach()) for name, term in terms.items()},
        "total": rounded(total.detach()),
        "cardinality_error": [rounded(measured["cardinality_error" + s]) for s in suffixes],
        "class_error": rounded(measured["class_error"]),
        "gradients": {name: rounded(grad.norm()) for name, grad in grads.items() if name.startswith(heads)},
    }


def answers(case: Case, model: nn.Module, out: dict[str, Any]) -> dict[str, Any]:
    """Return what a forward pass says, and the losses of it."""
    recorded = {key: rounded(layered(out, f"pred_{key}").detach()) for key in ("logits", "boxes")}
    if "pred_feature" in out:
        recorded["features"] = summary(layered(out, "pred_feature"))
        recorded["patch_features"] = summary(out["gt_feature"])
    return recorded | losses(case, model, out)


def record(case: Case) -> dict[str, Any]:
    """Return everything that one case is asked."""
    from models.detr import PostProcess
    from models.position_encoding import PositionEmbeddingSine
    from util.misc import NestedTensor, nested_tensor_from_tensor_list

    model = build(case)
    pixels, padding = canvas(case)
    nested = nested_tensor_from_tensor_list(images(case))
    assert torch.equal(nested.tensors, pixels) and torch.equal(nested.mask, padding)
    position = PositionEmbeddingSine(case.width // 2, normalize=True)
    cells = padding[:, ::16, ::16]
    result: dict[str, Any] = {
        "state": {name: list(value.shape) for name, value in model.state_dict().items()},
        "position": summary(position(NestedTensor(cells[:, None].float(), cells))),
        "backbone": summary(model.backbone(nested)[0][-1].tensors),
    }
    given = (patches(case),) if case.project == "updetr" else ()
    out = model.eval()(nested, *given)
    result["eval"] = answers(case, model, out)
    found = PostProcess()({k: v.detach() for k, v in out.items() if k != "aux_outputs"}, torch.tensor(case.original_sizes))
    result["detections"] = [{name: rounded(value) for name, value in image.items()} for image in found]
    if case.project == "updetr":
        result |= trained(case, model, nested)
    return result


def trained(case: Case, model: nn.Module, nested: Any) -> dict[str, Any]:
    """Return the training pass of UP-DETR with masking off, with given masks, and evaluation with fewer patches."""
    out = model.train()(nested, patches(case))
    result = {"train": {"total": losses(case, model, out)["total"]}}
    model.mask_ratio = 0.5
    # The model keeps a patch's feature where its own uniform draw exceeds the ratio.
    with mock.patch.object(torch, "rand", lambda *_, **__: kept(case)[..., None].float()):
        out = model(nested, patches(case))
    result["masked"] = answers(case, model, out)
    out = model.eval()(nested, patches(case)[:, :2])
    result["fewer"] = {key: rounded(layered(out, f"pred_{key}").detach()) for key in ("logits", "boxes")}
    return result


def main() -> None:
    """Record all cases of one project."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", choices=sorted({case.project for case in CASES.values()}))
    parser.add_argument("folder", type=Path, help="a checkout of that project")
    parser.add_argument("--commit", help="its commit, where the checkout has no .git")
    given = parser.parse_args()
    sys.path.insert(0, str(given.folder))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    commit = given.commit or subprocess.check_output(["git", "-C", given.folder, "rev-parse", "HEAD"], text=True).strip()
    for name, case in CASES.items():
        if case.project == given.project:
            torch.manual_seed(0)
            about = {"commit": commit, "torch": torch.__version__, "case": vars(case)}
            document = about | record(case)
            (HERE / f"{name}.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")
            print(name, document["eval"]["total"], document["eval"]["terms"])


if __name__ == "__main__":
    main()
