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


def find_suite(name: str, setting: Setting) -> Suite:
    """Return a suite by name.

    Args:
        name: One of `SUITES`.
        setting: Scale, data and seeds.

    Raises:
        ConfigError: There is no such suite, or a data set that it needs was not given.
    """
    if name not in SUITES:
        raise ConfigError(f"no suite {name!r}{suggest(name, SUITES)}; there are {', '.join(SUITES)}")
    return SUITES[name](setting)
