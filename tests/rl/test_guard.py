"""The guard's limits; tests/experiments/test_policy_gradient.py has runs that are really stopped."""

import math

import pytest

from jaxllm.rl.guard import Limits, breach, reason_to_stop

GOOD = {"step": 1, "reward": 0.0, "kl": 1.0, "entropy": 2.0, "truncated": 0.1, "skipped": 0, "updates": 2}
LIMITS = Limits(kl=10.0, entropy=0.1, truncated=0.5, patience=2)


@pytest.mark.parametrize("change, words", [
    ({"kl": 10.1}, "KL to the start model exploded: 10.1"), ({"entropy": 0.19}, "entropy died: 0.1900"),
    ({"truncated": 0.6}, "60% of the replies"), ({"skipped": 2}, "not finite in every update"),
    ({"kl": math.nan}, "not finite")])
def test_each_limit_is_named_after_as_many_steps_as_patience(change, words):
    bad = {**GOOD, **change}
    assert words in breach(bad, GOOD, LIMITS) and not breach(GOOD, GOOD, LIMITS)
    assert reason_to_stop([GOOD, bad], LIMITS) == "" == reason_to_stop([GOOD, bad, GOOD], LIMITS)
    assert words in reason_to_stop([GOOD, bad, {**bad, "step": 7}], LIMITS)
    assert reason_to_stop([GOOD, bad, {**bad, "step": 7}], LIMITS).startswith("step 7: ")


def test_what_is_in_order_or_switched_off_stops_nothing():
    at_the_limits = {**GOOD, "kl": 10.0, "entropy": 0.2, "truncated": 0.5, "skipped": 1}
    assert not breach(at_the_limits, GOOD, LIMITS)
    wild = {**GOOD, "kl": 1e6, "entropy": 0.0, "truncated": 1.0}
    assert not breach(wild, GOOD, Limits(kl=0.0, entropy=0.0, truncated=1.0))
    assert not reason_to_stop([], LIMITS)


def test_a_reward_that_is_no_number_stops_at_once():
    assert "reward is not finite" in reason_to_stop([{**GOOD, "reward": math.nan}], LIMITS)
    assert "reward is not finite" in reason_to_stop([GOOD, {**GOOD, "reward": -math.inf}], LIMITS)


@pytest.mark.parametrize("change", [{"kl": -1.0}, {"entropy": 1.0}, {"truncated": 0.0}, {"patience": 0}])
def test_bad_limits(change):
    with pytest.raises(ValueError, match="guard"):
        Limits(**change)
