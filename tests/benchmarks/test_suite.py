from dataclasses import replace

import pytest

from benchmarks.suite import Claim, ImagesOnDisk, Scale, Setting, Suite
from benchmarks.suites import DATA, SUITES, find_suite
from ssldet.errors import ConfigError


def test_a_suite_without_a_baseline_is_refused_with_every_problem_at_once(suite: Suite) -> None:
    claim = Claim(words="helps", higher="updetrr", lower="none")
    broken = replace(suite, methods=suite.methods[1:2] * 2, seeds=(1, 1), fractions=(1.5,), claims=(claim,))
    with pytest.raises(ConfigError) as caught:
        broken.check()
    text = str(caught.value)
    for words in (
        "the baseline of no pretraining is missing",
        "the baseline of backbone-only pretraining is missing",
        "methods: updetr occurs twice",
        "seeds: 1 occurs twice",
        "1.5 is not between 0 and 1",
        "'updetrr' is not in the suite (did you mean 'updetr'?)",
    ):
        assert words in text


def test_all_data_that_a_suite_lacks_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        find_suite("paper/table1", Setting(scale="full", places={"voc_test": "voc:VOC2007:test"}))
    assert [line.split(":")[0] for line in caught.value.problems] == ["imagenet", "voc_train"]
    with pytest.raises(ConfigError, match="did you mean 'paper/table1'"):
        find_suite("paper/table11", Setting())


def test_every_data_set_that_a_suite_asks_for_may_be_given() -> None:
    places = dict.fromkeys(DATA, "images")
    scales: tuple[Scale, ...] = ("tiny", "full")
    suites = [find_suite(name, Setting(scale=scale, places=places)) for name in SUITES for scale in scales]
    assert {data.name for suite in suites for data in suite.data() if isinstance(data, ImagesOnDisk)} == set(DATA)
