"""What a step learns from: groups drawn again, long replies, and conversations with tools, whose words do not count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from configs.policy_gradient import policy_config
from experiments import lab
from experiments.improve import improve, make_plan
from experiments.improve_draw import Drawing, tools_of
from experiments.taste import Start
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows
from jaxllm.data.loader import Rows
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.model.config import preset
from jaxllm.rl import policy_step
from jaxllm.rl.policy_settings import ALGORITHMS
from jaxllm.rl.rollout import Drawn, stack
from jaxllm.rl.tool_rollout import answer

TOKENIZER = dataclasses.replace(
    train_tokenizer(['{"name": "calculator", "arguments": {"expression": "2+3"}} user assistant tool'] * 9, 311,
                    "digits", SPECIAL_TOKENS), chat_template="im_sep")
MODEL = preset("nano", layers=1, vocab_size=TOKENIZER.vocab_size)
START = Start({}, MODEL, TOKENIZER)
PROMPTS = {name: [{"role": "user", "content": name}] for name in "abcdefghijkl"}


def settings(**changes):
    config = policy_config()
    config.update_from_flattened_dict({"prompts": 4, "samples": 3, "sampler.max_tokens": 10, "page_seconds": 0.0,
                                       "log_steps": 100, **changes})
    return config


class Talker:
    """Replies of 1 to 10 tokens that tell prompt, step and sample; it keeps what it was asked."""

    max_length = 20

    def __init__(self):
        self.asked = []

    def __call__(self, params, conversations, samples, seed, step):
        self.asked.append([talk[0]["content"] for talk in conversations])
        return [Drawn([1] + [2] * (1 + (step + 3 * g) % 10), [False] + [True] * (1 + (step + 3 * g) % 10),
                      [0.0] * (2 + (step + 3 * g) % 10), [0.0] * (2 + (step + 3 * g) % 10), "stop")
                for _ in conversations for g in range(samples)]


def drawing(**changes):
    config, talker = settings(**changes), Talker()
    return Drawing(config, make_plan(config, START), START, PROMPTS, 0, talker), talker


def by_name(easy):
    """Replies to the prompts named in `easy` are right by turns; those to others are all wrong."""
    return lambda names, said: np.array([[float(name in easy and g % 2) for g in range(len(row))]
                                         for name, row in zip(names, said, strict=True)])


def test_groups_of_equal_rewards_are_replaced_by_further_prompts_in_their_places():
    plain, talker = drawing()
    rows = [plain.draw(number, None, by_name("")) for number in (1, 2, 3, 4)]
    *order, fourth = talker.asked
    order = [name for asked in order for name in asked]
    assert sorted(order) == sorted(PROMPTS) and all(row["equal"] == 1.0 and row["drawn"] == 12 for _, row in rows)

    redone, talker = drawing(**{"policy.resample": 2})
    first, second, third = order[:4], order[4:8], order[8:]
    easy = [first[1], second[0], second[2], third[3]]
    groups, row = redone.draw(1, None, by_name(easy))
    # Three were equal: of four more two tell something; one is left, and of one more nothing.
    assert talker.asked == [first, second, third[:1]]
    assert [group.name for group in groups] == [second[0], first[1], second[2], first[3]]
    assert row["drawn"] == 3 * 9 and row["equal"] == pytest.approx(6 / 9)
    assert row["reward"] == pytest.approx(3 * 1 / 27)  # of all that was drawn, not of what was kept
    again, _ = drawing(**{"policy.resample": 2})
    assert [one.name for one in again.draw(1, None, by_name(easy))[0]] == [one.name for one in groups]
    redone.draw(2, None, by_name(PROMPTS))
    assert talker.asked[3:] == [fourth]  # the places of step 1 are used or passed over
    lost, row = redone.draw(3, None, lambda names, said: np.full((len(names), 3), np.nan))
    assert np.isnan(row["reward"]) and row["drawn"] == 12  # no reward at all is no group of equal rewards


def test_the_last_part_of_a_long_reply_costs_up_to_one():
    for share, penalty in ((0.0, lambda n: 0.0), (0.4, lambda n: min(0.0, (6 - n) / 4))):
        made, _ = drawing(**{"policy.overlong": share})
        groups, row = made.draw(1, None, by_name(PROMPTS))
        lengths = np.array([[sum(one.mask) for one in group.rows] for group in groups])
        assert set(lengths.ravel()) == {2, 5, 8}
        expected = np.array([[g % 2 + penalty(lengths[q, g]) for g in range(3)] for q in range(4)])
        np.testing.assert_allclose(made.shaped(groups), expected, atol=1e-6)
        assert row["reward"] == pytest.approx(1 / 3)


QUESTION = {"role": "user", "content": "2+3"}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"function": {"name": "calculator", "arguments": {"expression": "2+3"}}}]}
BY_HEART = [QUESTION, CALL, {"role": "tool", "name": "calculator", "content": "5"},
            {"role": "assistant", "content": "5"}]


TOOLS = {"prompts": 1, "samples": 4, "steps": 2, "sampler.by": "engine", "sampler.max_tokens": 24,
         "tools.names": ("calculator",), "tools.describe": False, "guard.truncated": 1.0, "optimizer.warmup_steps": 0}


@pytest.fixture(scope="module")
def two_steps():
    """Two steps of a model that has learned by heart to ask the calculator: (replies, transcripts, result)."""
    rows = Rows(conversation_rows([Conversation(BY_HEART)] * 4, TOKENIZER, 64).batch, seed=0)
    params = lab.train(jax.device_put(random_weights(MODEL)), MODEL, rows, lab.Recipe(60, 1, 1e-2), "by heart")
    caller, config, said, drawn = dataclasses.replace(START, params=params), settings(**TOOLS), [], []

    def reward(names, replies):
        said.extend(replies[0])
        return np.array([[float(text == "5") for text in row] for row in replies])

    with tools_of(config, make_plan(config, caller), caller) as tools:
        class Recorded:
            max_length = tools.max_length

            def __call__(self, *asked):
                drawn.append(tools(*asked))
                return drawn[-1]
        config.tools.names = ()  # the conversations come from outside
        found = improve(config, caller, reward, 0, prompts={"sum": [QUESTION]}, converse=Recorded())
    return said, drawn, found


def test_two_steps_with_a_calculator(two_steps):
    said, drawn, found = two_steps
    assert len(found.rows) == len(drawn) == 2 and not found.stopped and said.count("5") >= 4
    assert said == [answer(one) for some in drawn for one in some]
    for row, some in zip(found.rows, drawn, strict=True):
        assert row["calls"] == np.mean([one.calls for one in some]) > 0.0 and np.isfinite(row["loss"])
        assert row["sampler_gap_max"] < 1e-4 and row["tokens"] == sum(sum(one.mask) for one in some)


def test_what_a_tool_said_has_no_gradient(two_steps):
    rows = two_steps[1][0]
    assert next(one for one in rows if answer(one) == "5").messages[2] == {
        "role": "tool", "tool_call_id": "call_0", "name": "calculator", "content": "5"}
    rollout = stack(rows, 64)
    own, given = rollout.mask, (np.arange(64) < rollout.lengths[:, None]) & ~rollout.mask
    after = given & (np.cumsum(own, axis=1) > 0)
    assert (after & (rollout.tokens == TOKENIZER.encode("5")[0])).any()  # the result stands there
    zero, chosen = np.zeros(own.shape, np.float32), dataclasses.replace(ALGORITHMS["grpo"], entropy_coefficient=0.1)

    class Policy:
        def outputs(self, shift, tokens):
            return rollout.sampling_logp + shift, shift, None
    old = policy_step.Scores(rollout.sampling_logp, zero, zero, None)
    batch = jax.jit(policy_step.make_batch, static_argnames="settings")(
        chosen, rollout, old, jnp.array([[0.0, 1.0, 0.5, 2.0]]), 0.1)
    objective = policy_step.policy_objective(Policy(), chosen, 24)
    gradient = jax.jit(jax.grad(lambda shift: objective(shift, batch)[0].value))(jnp.zeros(own.shape))
    assert (np.asarray(gradient) != 0.0)[own].all() and not np.asarray(gradient)[~own].any()
