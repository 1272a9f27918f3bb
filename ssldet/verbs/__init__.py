"""The verbs of the command line as public functions, one per verb."""

from ssldet.verbs.composing import compose
from ssldet.verbs.data import check_data, compare_data, convert_data, pack_data
from ssldet.verbs.estimating import plan
from ssldet.verbs.exporting import export
from ssldet.verbs.handing import transfer
from ssldet.verbs.look import preview, report
from ssldet.verbs.opening import load
from ssldet.verbs.planning import plan_finetuning, plan_pretraining
from ssldet.verbs.showing import show
from ssldet.verbs.training import Trained, finetune, pretrain
from ssldet.verbs.using import evaluate, predict

__all__ = [
    "Trained",
    "check_data",
    "compare_data",
    "compose",
    "convert_data",
    "evaluate",
    "export",
    "finetune",
    "load",
    "pack_data",
    "plan",
    "plan_finetuning",
    "plan_pretraining",
    "predict",
    "pretrain",
    "preview",
    "report",
    "show",
    "transfer",
]
