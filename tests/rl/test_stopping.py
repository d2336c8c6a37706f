"""Stop rules: each on a run made for it, level and power over simulated runs, and the scores by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import binom

from jaxllm.rl import stopping
from jaxllm.rl.overoptimization import Law

LOOKS = 16
FALLS = Law("rl", 0.75, 0.6)  # peak at d = 1.28; below the start from d = 3.5
RISES = Law("rl", 0.5, 0.05)  # peak far beyond what is visited


def made(gain_K, seed=0, labels=64, **fields):
    """A run whose people prefer look i to look j with probability sigmoid(gain_i - gain_j); d rises evenly to 4."""
    gain_K = np.asarray(gain_K, float)
    K = len(gain_K)
    chance = 1 / (1 + np.exp(-(gain_K[:, None] - gain_K[None])))
    wins = (np.random.default_rng(seed).random((K, K, labels)) < chance[..., None]).astype(float)
    d = np.linspace(0, 4, K)
    plain = {"step": np.arange(K) * 5, "kl": d * d, "proxy": d, "committee": d, "disagreement": np.ones(K),
             "wins": wins, "budget": math.inf, "looks": K}
    return stopping.History(**{**plain, **fields})


def of_law(law, seed=0, **fields):
    return made(law.gain(np.linspace(0, 4, LOOKS)), seed, **fields)


RULES = {
    "fixed_step": stopping.fixed_step(30), "fixed_kl": stopping.fixed_kl(5.0), "kl_budget": stopping.kl_budget(1.5),
    "disagreement": stopping.disagreement(1.3), "committee": stopping.committee_drop(0.1),
    "win_rate": stopping.win_rate_drop(0.1, 32), "sequential": stopping.sequential_test(0.2, 64),
    "trend": stopping.trend(0.9, 64), "trend_start": stopping.trend(0.9, 64, "start"),
}


@pytest.mark.parametrize("name", RULES)
def test_no_rule_sees_ahead(name):
    """What comes after the stop, nonsense included, changes nothing."""
    rng = np.random.default_rng(1)
    history = of_law(FALLS, committee=-np.abs(np.arange(LOOKS) - 6.0), disagreement=np.linspace(1, 2, LOOKS),
                     budget=2.0)
    stop = stopping.run(RULES[name], history)
    assert stop.warned and stop.keep <= stop.look < LOOKS - 1
    later = slice(stop.look + 1, None)
    changed = {}
    for field in ("kl", "proxy", "committee", "disagreement", "wins"):
        changed[field] = getattr(history, field).copy()
        changed[field][later] = rng.random(changed[field][later].shape)
    assert stopping.run(RULES[name], dataclasses.replace(history, **changed)) == stop


def test_fixed_rules_and_the_budget():
    history = of_law(FALLS, budget=2.0)
    assert stopping.run(stopping.fixed_step(31), history) == stopping.Stop(7, 7, True)
    at = stopping.run(stopping.fixed_kl(3.0), history)
    assert history.kl[at.look] >= 3.0 > history.kl[at.look - 1] and at.keep == at.look
    assert stopping.run(stopping.kl_budget(1.5), history) == at
    assert stopping.run(stopping.kl_budget(1.5), of_law(FALLS)) == stopping.Stop(LOOKS - 1, LOOKS - 1, False)


def test_other_reward_models():
    scores = np.array([0.0, 1.0, 2.0, 1.95, 1.7, 1.0])
    history = made(np.zeros(6), committee=scores, disagreement=np.array([1.0, 1.1, 1.2, 1.4, 1.6, 2.0]))
    assert stopping.run(stopping.committee_drop(0.2), history) == stopping.Stop(4, 2, True)
    assert stopping.run(stopping.disagreement(1.5), history) == stopping.Stop(4, 4, True)
    assert not stopping.run(stopping.committee_drop(1.5), history).warned


def test_win_rate_keeps_the_highest_share():
    wins = np.zeros((5, 5, 10))
    for look, won in ((1, 6), (2, 9), (3, 8), (4, 6)):
        wins[look, 0, :won] = 1.0
    history = dataclasses.replace(made(np.zeros(5)), wins=wins)
    assert stopping.run(stopping.win_rate_drop(0.2, 10), history) == stopping.Stop(4, 2, True)


def test_e_value_is_the_average_likelihood_ratio_and_fair():
    for won, lost in ((0, 0), (3, 9), (9, 3), (0, 40)):
        shares = (np.arange(200_000) + 0.5) / 400_000  # midpoints of [0, 1/2]
        ratio = np.exp(won * np.log(2 * shares) + lost * np.log(2 * (1 - shares))).mean()
        assert stopping.log_e_value(won, lost) == pytest.approx(math.log(ratio), abs=1e-6)
    assert stopping.log_e_value(5000, 0) == -math.inf and stopping.log_e_value(0, 5000) > 3000
    for chance in (0.5, 0.6, 0.9):  # mean over all outcomes of 20 choices
        mean = sum(binom.pmf(k, 20, chance) * math.exp(stopping.log_e_value(k, 20 - k)) for k in range(21))
        assert mean == pytest.approx(1.0) if chance == 0.5 else mean < 1


def test_sequential_test_holds_its_level_however_often_one_looks_and_finds_a_fall():
    """On a plateau the obvious rule stops most runs at some look; the test at most alpha of them."""
    flat = [made(np.zeros(LOOKS), seed) for seed in range(80)]
    rule = stopping.sequential_test(0.1, 64)
    assert np.mean([stopping.run(rule, run).warned for run in flat]) <= 0.1
    assert np.mean([stopping.run(stopping.win_rate_drop(0.1, 64), run).warned for run in flat]) > 0.6
    fall = np.concatenate([np.linspace(0, 1, 6), np.linspace(1, -2, LOOKS - 6)])
    stops = [stopping.run(rule, made(fall, seed)) for seed in range(20)]
    assert all(stop.warned and stop.look > stop.keep for stop in stops)


def test_trend_keeps_the_peak_and_lets_a_rising_run_go_on():
    """As little is lost as by the obvious rule, which stops most runs that still rise."""
    gain = FALLS.gain(np.linspace(0, 4, LOOKS))
    obvious, trend = stopping.win_rate_drop(0.1, 64), stopping.trend(0.95, 64)
    falling, rising = ([of_law(law, seed) for seed in range(40)] for law in (FALLS, RISES))
    loss = {rule: np.mean([gain.max() - gain[stopping.run(rule, run).keep] for run in falling])
            for rule in (trend, obvious)}
    assert loss[trend] < 0.07 and loss[trend] < loss[obvious] + 0.01
    stopped = {rule: np.mean([stopping.run(rule, run).warned for run in rising]) for rule in (trend, obvious)}
    assert stopped[trend] < 0.25 < 0.5 < stopped[obvious]


def test_against_earlier_looks_tells_more_than_against_the_start():
    """The law's standard error between the peak and the end, from as many choices."""
    history = of_law(FALLS)
    errors = [stopping.choice_law(history, 64, against).lead(4.0, 1.3)[1] for against in ("earlier", "start")]
    assert errors[0] < errors[1]
    with pytest.raises(ValueError, match="choose start or earlier"):
        stopping.trend(0.9, 64, "middle")


def test_scores_by_hand():
    step, gold = np.arange(6) * 10, np.array([[0.0, 0.5, 1.0, 0.9, 0.6, 0.0]] * 2)
    late = stopping.score(stopping.Stop(5, 5, True), step, gold, tolerance=0.1, fall=0.3)
    assert late == stopping.Score(1.0, 1.0, False, -10, False)
    in_time = stopping.score(stopping.Stop(3, 2, True), step, gold, tolerance=0.1, fall=0.3)
    assert in_time.regret == 0 and in_time.regret_at_stop == pytest.approx(0.1) and in_time.lead == 10
    early = stopping.score(stopping.Stop(1, 1, True), step, gold, tolerance=0.1, fall=0.3)
    assert early.too_early and early.lead == 30 and early.regret == 0.5
    silent = stopping.score(stopping.Stop(5, 5, False), step, gold, tolerance=0.1, fall=0.3)
    assert silent.missed and silent.lead is None and not silent.too_early
    rising = stopping.score(stopping.Stop(5, 5, False), step, np.cumsum(gold, 1), tolerance=0.1, fall=0.3)
    assert not rising.missed and rising.lead is None and rising.regret == 0


def test_an_oracle_has_no_luck():
    """Where nothing differs but by noise, stopping anywhere costs nothing in the mean."""
    rng = np.random.default_rng(0)
    regrets = [stopping.score(stopping.Stop(3, 3, True), np.arange(20), rng.normal(size=(2, 20)), tolerance=0.1, fall=9)
               .regret for _ in range(2000)]
    assert abs(np.mean(regrets)) < 0.07
