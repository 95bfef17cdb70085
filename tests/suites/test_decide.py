"""The adaptive search against simulated attackers of known success rates: how often it errs, what it costs, and that it needs no luck."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from selgrad.errors import UsageError
from selgrad.report.statistics import anytime_bound, cells_needed, evidence_above, evidence_below, upper_bound
from selgrad.suites.decide import RATIOS, Answer, Question, Wanted, step


def search(question, rate_of, rng, num_cells=600, failing=0.0, open_at=(), luck=0.0):
    """Runs a search on inputs each of which is read up to a ratio of its own, or by luck; returns the answer and how many cells it took."""
    # An input is read where its quantile lies below the success rate, so success falls as more is encrypted, input by input.
    quantiles, broken = rng.random(num_cells), rng.random(num_cells) < failing
    tried = {}
    for _ in range(10_000):
        wanted = step(question, tried, num_cells)
        if isinstance(wanted, Answer):
            return wanted, sum(map(len, tried.values()))
        assert wanted.cells and not set(wanted.cells) & set(tried.get(wanted.ratio, {})), "every request brings something new"
        for cell in wanted.cells:
            if broken[cell]:
                outcome = "attack failed"
            elif quantiles[cell] < rate_of(question.ratios[wanted.ratio]) or rng.random() < luck:
                outcome = "read"
            else:
                outcome = "unresolved" if cell in open_at else "protected"
            tried.setdefault(wanted.ratio, {})[cell] = outcome
    raise AssertionError("the search does not end")


def logistic(centre, steepness=12.0):
    return lambda ratio: 1 / (1 + math.exp(steepness * (ratio - centre)))


@pytest.mark.parametrize(("centre", "steepness", "num_cells"), [(0.05, 12, 600), (0.3, 40, 600), (0.6, 40, 600), (0.3, 12, 100)])
def test_both_ends_are_wrong_less_often_than_they_may_be(centre, steepness, num_cells):
    rng, question, rate = np.random.default_rng(0), Question(confidence=0.8), logistic(centre, steepness)
    runs = [search(question, rate, rng, num_cells) for _ in range(150)]
    too_low = sum(answer.verdict == "protected" and rate(answer.ratio) > question.rate for answer, _ in runs)
    too_high = sum(answer.low > 0 and rate(answer.low) <= question.rate for answer, _ in runs)
    # The true probabilities are at most 10 %; so many more would be seen once in 10,000 such tests.
    most = scipy.stats.binom.ppf(1 - 1e-4, len(runs), question.error)
    assert too_low <= most and too_high <= most
    assert all(answer.low < answer.ratio for answer, _ in runs)


def test_a_quarter_of_the_cells_of_the_grid_at_most():
    """Of a grid with as many inputs as an exact test of each ratio needs, 0 of 72: `benchmarks/adaptive.py` measures what attacks need."""
    rng, question = np.random.default_rng(0), Question()
    for centre in (0.05, 0.3, 0.6):
        cells = np.median([search(question, logistic(centre, 40.0), rng)[1] for _ in range(30)])
        assert 72 * (len(RATIOS) - 1) > 4 * cells, (centre, cells)


def test_inputs_on_which_the_attack_fails_anyway_do_not_count():
    rng, question = np.random.default_rng(1), Question()
    answer, _ = search(question, logistic(0.3), rng, failing=0.5)
    assert answer.verdict == "protected" and answer.num_cells >= question.needed(0)
    assert search(question, logistic(0.3), rng, failing=1.0)[0].verdict == "attacks fail"


def test_what_cannot_be_said_is_not_said():
    rng, question = np.random.default_rng(2), Question()
    answer, _ = search(question, logistic(0.3), rng, num_cells=40)
    assert answer.verdict == "too few inputs" and answer.bound > question.rate
    answer, _ = search(question, logistic(0.3), rng, open_at=range(20, 400))
    assert answer.verdict == "unresolved" and answer.unresolved > 0
    # A few of them leave the answer as it would be if all were read, for more inputs; where there are no more, they leave it open.
    few = [search(question, logistic(0.3, 60.0), rng, open_at=[25, 60])[0] for _ in range(10)]
    told = [answer for answer in few if answer.verdict == "protected" and answer.unresolved]
    assert len(told) > 5 and all(answer.num_cells > question.needed(0) and answer.bound <= question.rate for answer in told)
    assert all(anytime_bound(answer.read + answer.unresolved, answer.num_cells, 0.05, 0.005, question.error) <= 0.05 for answer in told if answer.ratio <= 0.4)
    assert search(question, logistic(0.3, 60.0), rng, num_cells=130, open_at=[25, 60])[0].verdict in ("unresolved", "too few inputs")
    answer, cells = search(question, lambda ratio: 1.0, rng)
    assert (answer.verdict, answer.ratio, answer.low) == ("encrypt everything", 1.0, 0.999) and cells < 100
    answer, _ = search(question, lambda ratio: 0.0, rng)
    assert (answer.ratio, answer.low) == (0.001, 0.0), "whatever is encrypted protects, and no ratio was shown not to"


def test_what_is_read_above_is_not_passed_over():
    """Attacks need not fall with the ratio: what was read at a larger one speaks against a smaller one, too."""
    question, tried = Question(), {}
    protects = RATIOS.index(0.3)
    while isinstance(wanted := step(question, tried, 600), Wanted):
        for cell in wanted.cells:
            tried.setdefault(wanted.ratio, {})[cell] = "read" if wanted.ratio < protects else "protected"
    assert (wanted.verdict, wanted.ratio) == ("protected", 0.3)
    above = RATIOS.index(0.6)
    tried[above] = dict.fromkeys(range(18), "read")
    while isinstance(wanted := step(question, tried, 600), Wanted):
        for cell in wanted.cells:
            tried.setdefault(wanted.ratio, {})[cell] = "protected"
    assert wanted.ratio > 0.6


def test_an_open_question_has_the_bound_that_open_cells_leave():
    answer, _ = search(Question(), logistic(0.3), np.random.default_rng(5), open_at=range(600))
    assert answer.verdict == "unresolved" and answer.unresolved > 0.9 * answer.num_cells and answer.bound > 0.9


def test_where_inputs_end_the_next_ratio_is_tried_on_them():
    """At 0.3 the rate is what is tolerated, so no test of any length ends; with so many inputs one at 0.4 still can."""
    rng, question = np.random.default_rng(3), Question()
    found = [search(question, lambda ratio: 1.0 if ratio < 0.3 else 0.04 if ratio < 0.4 else 0.0, rng, num_cells=140)[0] for _ in range(20)]
    assert all(answer.ratio == 0.4 and answer.verdict == "protected" for answer in found if answer.ratio > 0.3)
    assert sum(answer.ratio == 0.4 for answer in found) > 15


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), centre=st.floats(0.0, 1.0), pilot=st.integers(1, 20), chunk=st.integers(1, 40), num_cells=st.integers(1, 300))
def test_it_ends_whatever_happens(seed, centre, pilot, chunk, num_cells):
    answer, _ = search(Question(pilot=pilot, chunk=chunk), logistic(centre), np.random.default_rng(seed), num_cells=num_cells, failing=0.1)
    assert answer.verdict in ("protected", "unresolved", "too few inputs", "encrypt everything", "attacks fail")


@pytest.mark.parametrize(("rate", "chance", "steps"), [(0.05, 0.003, 1), (0.2, 0.1, 3)])
def test_luck_is_no_reading(rate, chance, steps):
    """A guess among a thousand by three attacks, and the class among ten: the ratio is found about where it would be without, in steps of the grid."""
    rng, question = np.random.default_rng(4), Question(rate=rate, chance=chance)
    truth = logistic(0.3, 40.0)
    best = next(ratio for ratio in RATIOS if truth(ratio) + chance * (1 - truth(ratio)) < rate)
    found = [search(question, truth, rng, luck=chance)[0] for _ in range(40)]
    assert np.mean([answer.verdict == "protected" for answer in found]) > 0.9
    assert np.mean([abs(RATIOS.index(answer.ratio) - RATIOS.index(best)) <= steps for answer in found]) > 0.9


@pytest.mark.parametrize("successes", [0, 1, 5])
def test_an_anytime_bound_is_no_smaller_than_the_exact_one(successes):
    """What may be looked at as often as one likes costs something."""
    for trials in (100, 200, 400):
        assert upper_bound(successes, trials, 0.975) <= anytime_bound(successes, trials, 0.05, 0.005, 0.025)
    count = cells_needed(0.05, 0.005, 0.0125, successes)
    assert anytime_bound(successes, count, 0.05, 0.005, 0.0125) <= 0.05 < anytime_bound(successes, count - 1, 0.05, 0.005, 0.0125)
    assert anytime_bound(0, 0, 0.05, 0.005, 0.05) == 1


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_evidence_is_rarely_large_where_there_is_nothing_to_find(rate):
    """Ville's inequality, looked at after every tenth cell, at the rate itself and beside it."""
    rng, runs = np.random.default_rng(3), 1000
    for evidence, trues in ((evidence_above, (rate, rate * 0.7)), (lambda s, n, r: evidence_below(s, n, r, r / 4), (rate, rate * 1.3))):
        for true in trues:
            counts = np.cumsum(rng.random((runs, 80)) < true, axis=1)[:, 9::10]
            passed = sum(any(evidence(int(s), n, rate) >= 20 for n, s in zip(range(10, 81, 10), row, strict=True)) for row in counts)
            assert passed <= scipy.stats.binom.ppf(1 - 1e-4, runs, 0.05)


@pytest.mark.parametrize(("successes", "trials"), [(0, 30), (3, 40), (20, 25)])
def test_evidence_is_the_integral_that_it_says(successes, trials):
    density = lambda q: q**successes * (1 - q) ** (trials - successes)
    mixture = scipy.integrate.quad(density, 0.2, 1, epsabs=0, epsrel=1e-10)[0] / 0.8
    assert evidence_above(successes, trials, 0.2) == pytest.approx(mixture / density(0.2), rel=1e-6)
    assert evidence_below(successes, trials, 0.2, 0.05) == pytest.approx(density(0.05) / density(0.2), rel=1e-9)


def test_a_question_is_checked():
    for wrong, said in (
        ({"level": "nothing"}, "known: attribute"), ({"rate": 0.0}, "rate=0"), ({"confidence": 1.0}, "confidence=1"), ({"chance": 0.1}, "guessing alone"), ({"pilot": 0}, "pilot=0"),
        ({"ratios": (0.5, 0.1, 1.0)}, "ascend"), ({"ratios": (0.5,)}, "ascend"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            Question(**wrong)
