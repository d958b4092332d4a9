"""The verdict says what the table shows, the control included."""

from __future__ import annotations

import pytest

from salun_fast.report.verdict import remarks, verdict
from tests.report.conftest import run, seeds, source

PHRASES = {"random": "forgetting 10 % at random", "class": "forgetting class 3"}
RETRAIN = seeds("retrain", (5.0, 100.0, 94.0, 12.0), (5.0, 100.0, 94.0, 12.0))


def _verdict(records):
    found = source(records)
    return verdict({task: found.rows(task) for task in found.tasks}, PHRASES)


def _remarks(records):
    found = source(records)
    return remarks({task: found.rows(task) for task in found.tasks}, PHRASES)


def test_verdict_admits_that_the_control_was_closer(compared):
    assert _verdict(compared.records) == (
        "SalUn stayed farther from Retrain than a random mask of the same density when forgetting "
        "10 % at random (Avg. Gap 3.50 ± 0.00 against 0.25 ± 0.00)."
    )


def test_verdict_credits_saliency_only_when_the_intervals_are_apart():
    near = seeds("salun", (5.0, 100.0, 94.0, 11.0), (5.0, 100.0, 94.0, 11.0))
    far = seeds("random_mask", (9.0, 99.0, 93.0, 20.0), (9.0, 99.0, 93.0, 20.0))
    assert _verdict(RETRAIN + near + far).startswith("SalUn came closer to Retrain than a random")
    noisy = seeds("random_mask", (5.0, 100.0, 94.0, 10.0), (25.0, 99.0, 93.0, 20.0))
    assert "do not differ beyond the spread over seeds" in _verdict(RETRAIN + near + noisy)


def test_verdict_admits_that_no_mask_does_as_well():
    near = [(5.0, 100.0, 94.0, 11.0)] * 2
    far = [(9.0, 99.0, 93.0, 20.0)] * 2
    records = RETRAIN + seeds("salun", *near) + seeds("random_mask", *far) + seeds("rl", *near)
    assert "but random labels without any mask get 0.25 ± 0.00)" in _verdict(records)
    records = RETRAIN + seeds("salun", *near) + seeds("random_mask", *far) + seeds("rl", *far)
    assert "without any mask" not in _verdict(records)


def test_one_seed_settles_nothing():
    records = [
        run("retrain", 0, (5.0, 100.0, 94.0, 12.0)),
        run("salun", 0, (5.0, 100.0, 94.0, 12.0)),
        run("random_mask", 0, (50.0, 50.0, 50.0, 50.0)),
    ]
    assert _verdict(records).startswith("One seed cannot tell SalUn from a random mask")


def test_tasks_with_one_outcome_share_the_sentence():
    records = []
    for task in ("random", "class"):
        records += seeds("retrain", (5.0, 100.0, 94.0, 12.0), (5.0, 100.0, 94.0, 12.0), task=task)
        for method in ("salun", "random_mask"):
            records += seeds(method, (5.0, 99.0, 94.0, 12.0), (5.0, 99.0, 94.0, 12.0), task=task)
    sentence = _verdict(records)
    assert sentence.count("SalUn and a random mask") == 1
    assert "at random" in sentence
    assert "class 3" in sentence


def test_verdict_names_a_control_of_another_density():
    records = RETRAIN + seeds("salun", *[(5.0, 99.0, 94.0, 12.0)] * 2)
    control = seeds("random_mask", *[(5.0, 99.0, 94.0, 12.0)] * 2)
    for record in control:
        record["overrides"] = {"density": 0.3}
    assert "a random mask of another density (0.3, SalUn's is 0.5)" in _verdict(records + control)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (RETRAIN + seeds("ft", *[(1.0, 100.0, 94.0, 12.0)] * 2), "without a random-mask control"),
        ([run("original", 0, (0, 100, 95, 2)), run("ga", 0, (9, 90, 85, 20))], "without Retrain"),
    ],
)
def test_verdict_says_what_is_missing(records, words):
    assert words in _verdict(records)


def test_remarks_tell_when_doing_nothing_was_better():
    lazy = seeds("original", *[(5.0, 100.0, 94.0, 11.0)] * 2)
    worse = seeds("ga", *[(9.0, 99.0, 93.0, 20.0)] * 2)
    (line,) = _remarks(RETRAIN + lazy + worse)
    assert "no method came closer than doing nothing" in line


def test_remarks_name_methods_that_the_spread_does_not_separate():
    first = seeds("ft", (5.0, 100.0, 94.0, 12.0), (7.0, 100.0, 94.0, 12.0))
    second = seeds("rl", (5.0, 100.0, 94.0, 13.0), (7.0, 100.0, 94.0, 13.0))
    (line,) = _remarks(RETRAIN + first + second)
    assert "FT has the smallest Avg. Gap" in line
    assert "does not separate from RL" in line
