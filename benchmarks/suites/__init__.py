"""name -> suite: all comparisons that the project defines, each a function of a `Setting`."""

from benchmarks.suite import Setting, Suite, SuiteFunction
from benchmarks.suites import detectors, ours, paper, small, smoke
from ssldet.errors import ConfigError, suggest

SUITES: dict[str, SuiteFunction] = {
    "smoke": smoke.smoke,
    "paper/table1": paper.table1,
    "paper/table2": paper.table2,
    "paper/table3": paper.table3,
    "paper/table4": paper.table4,
    "paper/table5": paper.table5,
    "paper/table6": paper.table6,
    "paper/fig6": paper.fig6,
    "paper/fig7": paper.fig7,
    "ours/matching": ours.matching,
    "ours/small": small.small,
    "ours/few_labels": small.few_labels,
    "ours/matching_small": small.matching,
    "ours/backbone_swap": small.backbone_swap,
    "ours/orderings": small.orderings,
    "zoo/methods": ours.methods,
    "zoo/small": small.methods,
    "zoo/detectors": detectors.detectors,
    "own_data": ours.own_data,
}
"""Name -> function that builds the suite."""


DATA = (
    *("imagenet", "voc_train", "voc_test", "coco_train", "coco_val", "panoptic_train", "panoptic_val"),
    *("photos", "cards", "cards_val", "images", "train", "val", "labelled", "more_train", "more_val"),
)
"""Names of all data sets that suites ask for."""


def find_suite(name: str, setting: Setting) -> Suite:
    """Return a suite by name.

    Args:
        name: One of `SUITES`.
        setting: Scale, data and seeds.

    Raises:
        ConfigError: There is no such suite, or a data set that it needs was not given, or one that no suite knows was.
    """
    wrong = [
        f"--data {given}=…: no suite asks for it{suggest(given, DATA)}" for given in setting.places if given not in DATA
    ]
    if name not in SUITES:
        wrong.append(f"no suite {name!r}{suggest(name, SUITES)}; there are {', '.join(SUITES)}")
    if wrong:
        raise ConfigError(wrong)
    return SUITES[name](setting)
