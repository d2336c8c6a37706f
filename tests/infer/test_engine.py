"""The engine against `generate` and `forward`, and against itself: alone, in company, and after any history."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.infer import engine_steps
from jaxllm.infer.engine import Engine, Request
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import preset
from jaxllm.model.params import unstack_blocks
from jaxllm.model.quantize import prepare_for_decoding
from jaxllm.model.transformer import forward

GREEDY = SamplingSettings(temperature=0.0)
SETTINGS = [GREEDY, SamplingSettings(), SamplingSettings(temperature=0.8, top_p=0.9),
            SamplingSettings(temperature=1.3, top_k=20, min_p=0.02), SamplingSettings(repetition_penalty=1.3),
            SamplingSettings(temperature=0.0, repetition_penalty=1.5)]
CONFIG = preset("nano", layers=1)
SHAPE = dict(slots=4, capacity=64, chunk=8)
RNG = np.random.default_rng(0)


def sharp_params(config):
    """Random weights scaled so that the likeliest token stands out from rounding."""
    return jax.device_put(unstack_blocks(jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, random_weights(config))))


PARAMS = sharp_params(CONFIG)


def prompts_of(*lengths):
    return [tuple(RNG.integers(0, 256, length).tolist()) for length in lengths]


PROMPTS = prompts_of(3, 8, 17)


def requests_of(count, most=30):
    """Requests that differ in all that a request has, some of which share the beginnings of their prompts."""
    beginnings = [(), *prompts_of(8, 16, 19)]
    made = []
    for i in range(count):
        prompt = beginnings[i % 4] + prompts_of(int(RNG.integers(1, most - 18)))[0]
        made.append(Request(prompt, int(RNG.integers(1, most)), SETTINGS[i % 6], seed=i // 2, sample=i % 3,
                            stop_tokens=(7, 9) if i % 5 == 0 else (), alternatives=3 if i % 7 == 0 else 0))
    return made


@pytest.fixture(scope="module")
def service():
    """(an engine, the compiles heard before its `warm_up`, those heard while it served after it).

    It is here that the programs of the size of most tests compile: none of them has run yet.
    """
    heard = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            heard.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x + 2)(np.float32(1))
    before = len(heard)
    engine = Engine(PARAMS, CONFIG, **SHAPE)
    engine.warm_up()
    heard.clear()
    mixed = requests_of(20)
    engine.run([*mixed, dataclasses.replace(mixed[0], constraint=Only([1, 2, 3]))])
    jax.monitoring.unregister_event_duration_listener(listen)
    return engine, before, len(heard)


@pytest.fixture(scope="module")
def engine(service):
    return service[0]


def alone(request):
    return Engine(PARAMS, CONFIG, **SHAPE).run([request])[0]


def told(completion):
    """What must not depend on company: `cached_tokens` may."""
    return dataclasses.replace(completion, cached_tokens=0)


@pytest.mark.parametrize("settings", [GREEDY, SamplingSettings(temperature=0.9, top_k=40)])
def test_a_request_is_told_what_generate_and_forward_say(engine, settings):
    made = engine.run(Request(prompt, 12, settings, seed=5, sample=i) for i, prompt in enumerate(PROMPTS))
    expected = generate(PARAMS, CONFIG, PROMPTS, key=5, max_tokens=12, settings=settings, samples_per_prompt=3,
                        row_ids=[0, 0, 0])
    rows = np.zeros((3, 32), np.int32)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, made, strict=True)):
        assert list(completion.tokens) == expected.rows()[4 * i] and completion.finish == "length"
        np.testing.assert_allclose(completion.sampling_logp, expected.sampling_logp[4 * i], rtol=1e-4, atol=1e-5)
        rows[i, :len(prompt) + 12] = prompt + completion.tokens
    logp = np.asarray(jax.nn.log_softmax(jax.jit(forward, static_argnums=1)(PARAMS, CONFIG, rows)))
    for i, (prompt, completion) in enumerate(zip(PROMPTS, made, strict=True)):
        places = len(prompt) - 1 + np.arange(12)
        np.testing.assert_allclose(completion.logp, logp[i, places, completion.tokens], rtol=1e-5, atol=1e-5)


def test_a_penalty_reaches_the_prompt_and_what_was_drawn(engine):
    settings = SamplingSettings(temperature=0.0, repetition_penalty=1e6)
    for prompt, one in zip(PROMPTS, engine.run(Request(prompt, 20, settings) for prompt in PROMPTS), strict=True):
        assert len(set(one.tokens)) == 20 and not set(one.tokens) & set(prompt)


def test_text_and_numbers_do_not_depend_on_company_slot_or_history(engine):
    requests = requests_of(24)
    together = engine.run(requests)
    again = engine.run(requests[::-1])[::-1]
    assert list(map(told, together)) == list(map(told, again))
    assert sum(one.cached_tokens for one in again) > 0
    for i in (0, 5, 6, 7, 13, 22):
        assert told(alone(requests[i])) == told(together[i])  # to the last bit


def test_prepared_weights_and_a_cache_of_8_bits_keep_rows_apart():
    engine = Engine(prepare_for_decoding(PARAMS, CONFIG), CONFIG, **SHAPE, cache_dtype="int8")
    requests = requests_of(10)
    together = list(map(told, engine.run(requests)))
    assert together == list(map(told, engine.run(requests[::-1])))[::-1]
    assert together[6] == told(engine.run([requests[6]])[0])


def test_a_crowd_of_requests(engine):
    """All answered once and in full, nothing kept, and each told what it is told alone."""
    requests = [dataclasses.replace(request, max_tokens=1 + request.max_tokens % 6)
                for request in requests_of(250, most=22)]
    ids, events = [], []
    for request in requests:
        ids.append(engine.submit(request))
    assert engine.waiting == 250
    before, steps = live_bytes(), 0
    while engine.waiting + engine.running:
        events += engine.step()
        steps += 1
        assert engine.running <= 4 and (steps % 50 or live_bytes() <= before + 2**18)
    finished = [event.request_id for event in events if event.finish]
    assert sorted(finished) == ids and engine.waiting == engine.running == 0
    assert not engine._jobs and not engine._flights
    for i in (3, 125, 248):
        mine = [event for event in events if event.request_id == ids[i]]
        expected = alone(requests[i])
        assert tuple(event.token for event in mine) == expected.tokens
        assert tuple(event.logp for event in mine) == expected.logp
        assert len(mine) <= requests[i].max_tokens and mine[-1].finish == expected.finish


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_nothing_compiles_in_service(service):
    _, before, during = service
    assert before and not during


def test_stop_tokens_and_alternatives(engine):
    prompt = prompts_of(5)[0]
    free, shown = engine.run([Request(prompt, 20), Request(prompt, 20, alternatives=4)])
    assert told(shown) == told(free)
    stop = free.tokens[6]
    engine.submit(Request(prompt, 20, stop_tokens=(255, stop), alternatives=4))
    events = drain(engine)
    length = free.tokens.index(stop) + 1
    assert tuple(event.token for event in events) == free.tokens[:length]
    assert [event.finish for event in events] == [None] * (length - 1) + ["stop"]
    row = np.array([prompt + free.tokens], np.int32)
    logp = np.asarray(jax.nn.log_softmax(jax.jit(forward, static_argnums=1)(PARAMS, CONFIG, row)))[0, 4:]
    for event, expected in zip(events, logp, strict=False):
        assert [token for token, _ in event.alternatives] == np.argsort(-expected)[:4].tolist()
        np.testing.assert_allclose([one for _, one in event.alternatives], np.sort(expected)[:-5:-1], atol=1e-5)


def drain(engine):
    events = []
    while engine.waiting + engine.running:
        events += engine.step()
    return events


def test_samples_of_a_prompt_run_it_once(engine):
    before = engine.counters
    prompt = prompts_of(21)[0]
    made = engine.run(Request(prompt, 6, seed=3, sample=i) for i in range(6))
    run = engine.counters["pieces"] - before["pieces"]
    assert run == 3 and [one.cached_tokens for one in made] == [0] + [21] * 5
    assert len({one.tokens for one in made}) == 6
    longer = engine.run([Request(prompt + (1, 2), 6), Request(prompt[:18] + (0,), 6), Request(prompt[:16], 6)])
    assert [one.cached_tokens for one in longer] == [16, 16, 8]  # whole pieces, and the last token is always run


def test_a_cancelled_request_frees_its_slot_in_any_state(engine):
    prompt = prompts_of(30)[0]
    kept = Request(prompts_of(4)[0], 30, seed=1)
    expected = alone(kept)
    ids = [engine.submit(kept)] + [engine.submit(Request(prompt[i:] + prompt[:i], 30)) for i in range(6)]
    engine.cancel(ids[5])  # waiting
    events = engine.step()
    engine.cancel(ids[1])  # its prompt is being run, or it draws
    events += engine.step() + engine.step() + engine.step()
    for cancelled in ids[1:5] + ids[6:]:
        engine.cancel(cancelled)
    engine.cancel(ids[1])  # twice, and one that never was
    engine.cancel(12345)
    assert engine.running == 1 and engine.waiting == 0
    late = engine.submit(Request(prompt, 5))
    events += drain(engine)
    assert tuple(event.token for event in events if event.request_id == ids[0]) == expected.tokens
    for cancelled in ids[1:]:
        ends = [event for event in events if event.request_id == cancelled and event.finish]
        assert [(end.token, end.finish) for end in ends] == [(None, "cancelled")]
    made = [event for event in events if event.request_id == late]  # in a slot whose steps were on their way
    assert made[-1].finish == "length"
    assert tuple((event.token, event.logp) for event in made) == tuple(zip(
        *(getattr(alone(Request(prompt, 5)), name) for name in ("tokens", "logp")), strict=True))


class Only:
    """Allows an even id after an odd one and the other way round, of the ids given, and then nothing."""

    def __init__(self, ids, most=4):
        self.ids, self.most, self.taken = ids, most, []

    def allowed(self):
        mask = np.zeros(40, bool)  # shorter than the vocabulary
        if len(self.taken) < self.most:
            mask[[i for i in self.ids if not self.taken or (i - self.taken[-1]) % 2]] = True
        return mask

    def accept(self, token):
        self.taken.append(token)


def test_a_constraint_binds_its_row_alone(engine):
    free = Request(prompts_of(9)[0], 10, SamplingSettings(top_k=30), seed=2)
    expected = alone(free)
    ids = list(range(10, 30))
    bound = [Request(prompts_of(6)[0], most, seed=i, constraint=Only(ids)) for i, most in enumerate((3, 9))]
    made = engine.run([free, *bound])
    assert told(made[0]) == told(expected)
    assert [len(one.tokens) for one in made[1:]] == [3, 4] and [one.finish for one in made[1:]] == ["length", "stop"]
    for one in made[1:]:
        assert set(one.tokens) <= set(ids)
        assert all((a - b) % 2 for a, b in zip(one.tokens, one.tokens[1:], strict=False))
        assert all(seen > model for seen, model in zip(one.sampling_logp, one.logp, strict=True))


def test_new_weights_forget_what_the_old_computed(engine):
    request = Request(prompts_of(20)[0], 5)
    first = engine.run([request])[0]
    host = jax.device_get(PARAMS)
    engine.load(jax.device_put(jax.tree.map(lambda x: -x, host)))
    second = engine.run([request])[0]
    engine.load(PARAMS)
    assert second.cached_tokens == 0 and second.logp != first.logp
    assert told(engine.run([request])[0]) == told(first)
    engine.load(jax.device_put(jax.tree.map(lambda x: np.full_like(x, np.nan), host)))
    engine.run([Request(prompts_of(40)[0], 20)])
    engine.load(PARAMS)
    assert told(engine.run([request])[0]) == told(first)
    with pytest.raises(ValueError, match="not laid out as those before"):
        engine.load(jax.device_put(jax.tree.map(lambda x: x.astype(jnp.bfloat16), host)))


def test_a_bad_request_among_good_ones_takes_none(engine):
    good = Request(prompts_of(5)[0], 3)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.run([good, Request((), 3)])
    assert engine.waiting == engine.running == 0


@pytest.mark.parametrize("changes, sentence", [
    (dict(prompt=()), "the prompt is empty"),
    (dict(prompt=(1,) * 60), "60 tokens; with max_tokens=5 that exceeds the 64 positions"),
    (dict(prompt=(1, 256)), "outside the model's vocabulary of 256"),
    (dict(prompt=(-1,)), "outside the model's vocabulary of 256"),
    (dict(prompt=(1.5,)), "prompt must hold integers"),
    (dict(max_tokens=0), "max_tokens is 0"),
    (dict(settings=None), "settings must be SamplingSettings"),
    (dict(stop_tokens=(999,)), "stop_tokens must be at most 16 ids"),
    (dict(stop_tokens=tuple(range(17))), "stop_tokens must be at most 16 ids"),
    (dict(seed=2**64), "an integer of 64 bits"),
    (dict(seed="a"), "seed must hold integers"),
    (dict(sample=-1), "sample is -1"),
    (dict(alternatives=21), "alternatives is 21; it must be 0 to 20"),
    (dict(constraint=3), "a constraint needs the methods"),
])
def test_bad_requests_are_refused_before_anything_runs(engine, changes, sentence):
    before = engine.counters
    with pytest.raises(ValueError, match=sentence):
        engine.submit(Request(**(dict(prompt=(1, 2), max_tokens=5) | changes)))
    assert engine.counters == before and engine.waiting == 0 and engine.step() == []


def test_seeds_of_64_bits_differ(engine):
    prompt = prompts_of(4)[0]
    made = engine.run(Request(prompt, 8, seed=seed) for seed in (1, 1 + 2**32, -1, 2**63))
    assert len({one.tokens for one in made}) == 4


@pytest.mark.slow
def test_on_a_mesh_the_text_is_the_same():
    requests = requests_of(6, most=20)
    expected = Engine(PARAMS, CONFIG, **SHAPE).run(requests)
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        engine = Engine(PARAMS, CONFIG, **SHAPE)
        made = engine.run(requests)
        compiled = engine_steps.advance._cache_size(), engine_steps.prefill._cache_size()
        engine.run(requests[:2])
        assert (engine_steps.advance._cache_size(), engine_steps.prefill._cache_size()) == compiled
    for one, other in zip(made, expected, strict=True):
        assert one.tokens == other.tokens and one.finish == other.finish
        np.testing.assert_allclose(one.logp, other.logp, rtol=1e-4, atol=1e-4)
