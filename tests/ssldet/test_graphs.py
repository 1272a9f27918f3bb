"""A detector is one graph for torch.compile, and an objective breaks only around the matching, on the host."""

from pathlib import Path
from typing import Any

import torch._dynamo

from downstream.annotations.shapes import write_shapes
from ssldet.engine.sources import open_sources, training_batches_of
from ssldet.nn.transformer import Grouping
from ssldet.queries import group_ids
from ssldet.recipe import override
from ssldet.registry import find


def test_only_the_matching_breaks_the_graph(tmp_path: Path) -> None:
    write_shapes(tmp_path, images=2, size=64)
    run = find("ssldet.recipes", "random_query_patch/tiny")()
    run = override(run, {"data.train": (str(tmp_path / "images"),), "data.workers": 0, "data.batch_size": 2})
    run = override(run, {"detector.width": 16, "detector.encoder_layers": 1, "detector.decoder_layers": 1})
    objective = run.task.objective(run.detector.build())
    objective.begin(0, 9)
    batch = next(iter(training_batches_of(run, open_sources(run).train, 0)))
    asked: list[tuple[Any, Any]] = []
    hook = objective.detector.register_forward_pre_hook(
        lambda _, given, named: asked.append((given, named)), with_kwargs=True
    )
    objective(batch)
    hook.remove()
    given, named = asked[0]
    found = torch._dynamo.explain(objective.detector)(*given, **named)
    assert found.graph_break_count == 0, found.break_reasons
    torch._dynamo.reset()
    found = torch._dynamo.explain(objective)(batch)
    torch._dynamo.reset()
    assert found.graph_break_count <= 2, found.break_reasons
    assert all("Matcher.__call__" in str(reason.reason) for reason in found.break_reasons)


def test_groups_that_are_known_are_laid_out_like_those_that_are_looked_at() -> None:
    for queries, groups in ((12, 3), (4, 1), (5, 5)):
        assert Grouping.of(group_ids(queries, groups), groups) == Grouping.of(group_ids(queries, groups))
