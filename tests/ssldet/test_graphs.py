"""A detector is one graph for torch.compile, and an objective breaks only around the matching, on the host."""

import subprocess
import sys
from pathlib import Path

from downstream.annotations.shapes import write_shapes
from ssldet.nn.transformer import Grouping
from ssldet.queries import group_ids

EXPLAINED = """
import sys

import torch
from torch import _dynamo

from ssldet.engine.sources import open_sources, training_batches_of
from ssldet.recipe import override
from ssldet.registry import find

run = find("ssldet.recipes", "random_query_patch/tiny")()
run = override(run, {"data.train": (sys.argv[1],), "data.workers": 0, "data.batch_size": 2})
run = override(run, {"detector.width": 16, "detector.encoder_layers": 1, "detector.decoder_layers": 1})
objective = run.task.objective(run.detector.build())
objective.begin(0, 9)
batch = next(iter(training_batches_of(run, open_sources(run).train, 0)))
asked = []
keep = lambda _, given, named: asked.append((given, named))
hook = objective.detector.register_forward_pre_hook(keep, with_kwargs=True)
objective(batch)
hook.remove()
given, named = asked[0]
detector = _dynamo.explain(objective.detector)(*given, **named)
_dynamo.reset()
whole = _dynamo.explain(objective)(batch)
elsewhere = [reason.reason for reason in whole.break_reasons if "Matcher.__call__" not in str(reason.reason)]
print(detector.graph_break_count, whole.graph_break_count, len(elsewhere))
"""
"""In a process of its own: the checks of shapes, which tests have on, break graphs, and compiling starts threads."""


def test_only_the_matching_breaks_the_graph(tmp_path: Path) -> None:
    write_shapes(tmp_path, images=2, size=64)
    command = [sys.executable, "-c", EXPLAINED, str(tmp_path / "images")]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["0", "2", "0"]


def test_groups_that_are_known_are_laid_out_like_those_that_are_looked_at() -> None:
    for queries, groups in ((12, 3), (4, 1), (5, 5)):
        assert Grouping.of(group_ids(queries, groups), groups) == Grouping.of(group_ids(queries, groups))
