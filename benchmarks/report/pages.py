"""committed results -> tables of the documentation: `python -m benchmarks tables`.

A page names a table in a comment, `<!-- table: NAME -->`, and everything up to `<!-- end -->` is written from the
committed JSON, so that no figure there is typed.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.report import decisions, tables_of_records, tables_of_runs, tables_of_suites
from benchmarks.report.costs import table_of_costs
from ssldet.errors import ConfigError, suggest

RESULTS = Path("benchmarks/results")
_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n)(?:(?!<!-- table: ).)*?(<!-- end -->)", re.DOTALL)
_BEGIN = re.compile(r"<!-- table: (?P<name>[\w-]+) -->")


def write_tables(text: str, results: Path = RESULTS) -> str:
    """Return a page with its tables written anew.

    Args:
        text: The page.
        results: Folder of committed results.

    Raises:
        ConfigError: The page names a table that does not exist, or does not say where it ends.
    """
    ended = {block["name"] for block in _BLOCK.finditer(text)}
    if endless := [begin["name"] for begin in _BEGIN.finditer(text) if begin["name"] not in ended]:
        raise ConfigError([f"table {name!r}: no <!-- end --> follows" for name in endless])

    def table(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in TABLES:
            raise ConfigError(f"no table {name!r}{suggest(name, list(TABLES))}")
        return f"{block[1]}{TABLES[name](results)}\n{block[3]}"

    return _BLOCK.sub(table, text)


LEARNING = {
    "random_query_patch": ("patch_iou",),
    "joint": ("patch_iou",),
    "siamese_detr": ("patch_iou",),
    "distillation": ("agreement",),
}
LEARNING_REGIONS = dict.fromkeys(("detreg", "pseudo_boxes"), ("region_recall_30", "object_recall_30"))

TABLES: dict[str, Callable[[Path], str]] = {
    "backbone_swap": partial(tables_of_suites.starts, name="ours-backbone-swap-tiny", baseline="exchanged"),
    "backbones": tables_of_records.backbones,
    "claims": tables_of_suites.claims,
    "collapse": tables_of_records.collapse,
    "costs": table_of_costs,
    "demo": tables_of_runs.demo,
    "few_labels": tables_of_suites.few_labels,
    "decisions": decisions.decisions,
    "found": decisions.found,
    "detectors": tables_of_suites.detectors,
    "matching": tables_of_suites.matching,
    "matching_small": partial(tables_of_suites.starts, name="ours-matching-small-tiny", baseline="backbone"),
    "learning": partial(tables_of_suites.learning, measures=LEARNING),
    "learning_regions": partial(tables_of_suites.learning, measures=LEARNING_REGIONS),
    "methods": tables_of_suites.methods,
    "panoptic": tables_of_records.panoptic,
    "pretraining": tables_of_suites.pretraining,
    "one_shot": partial(tables_of_records.one_shot, name="one_shot"),
    "one_shot_cards": partial(tables_of_records.one_shot, name="one_shot_cards"),
    "orderings": partial(tables_of_suites.starts, name="ours-orderings-tiny", baseline="backbone"),
    "resemblance": tables_of_runs.resemblance,
    "speed": tables_of_runs.speed,
    "self_training": tables_of_suites.self_training,
    "small": tables_of_suites.small,
    "small_differences": tables_of_suites.small_differences,
    "small_run": tables_of_runs.small_run,
    "steps": tables_of_runs.steps,
    "two_stage": partial(tables_of_suites.two_stage, name="zoo-detectors-two-stage-tiny"),
    "two_stage_apart": partial(tables_of_suites.two_stage, name="zoo-detectors-apart-tiny"),
    "zoo_small": partial(tables_of_suites.starts, name="zoo-small-tiny", baseline="backbone"),
}
"""Name -> folder of committed results -> table in Markdown."""
