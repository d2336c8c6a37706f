"""The update step: exact accumulation, skipped steps, the moving average; on a toy loss and on our own model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, preset
from jaxllm.model.params import abstract_params
from jaxllm.train.metrics import Mean
from jaxllm.train.objective import context, evaluate, next_token_objective
from jaxllm.train.optimizer import learning_rate_schedule, make_optimizer
from jaxllm.train.step import accumulate_gradients, init_state, make_train_step

RNG = np.random.default_rng(0)
QUICK = {"xla_backend_optimization_level": 0}  # to compile, that is


def toy_loss(params, batch):
    """Weighted squared error of a line; a model that is not ours."""
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    loss = Mean(jnp.sum(batch["weights"] * error**2), jnp.sum(batch["weights"]))
    return loss, {"absolute": Mean(jnp.sum(batch["weights"] * jnp.abs(error)), loss.weight)}


TOY_PARAMS = {"w": np.array([1.0, -2.0, 0.5], np.float32), "b": np.float32(0.3)}


def toy_batch(weights=(1.0, 0.0, 2.0, 0.5, 0.0, 3.0), rows=6):
    return {"x": RNG.normal(size=(rows, 3)).astype(np.float32), "y": RNG.normal(size=rows).astype(np.float32),
            "weights": np.array(weights, np.float32)}


toy_gradients = jax.jit(functools.partial(accumulate_gradients, toy_loss), static_argnums=2)


def assert_same_bits(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def nano_batch(weights=None, rows=4, length=16, seed=0):
    ids = np.random.default_rng(seed).integers(0, 256, (rows, length + 1)).astype(np.int32)
    weights = np.ones((rows, length), np.float32) if weights is None else weights
    return Batch(ids[:, :-1], ids[:, 1:], weights, segment_ids=np.ones((rows, length), np.int32))


@pytest.fixture(scope="module")
def nano():
    """(config, params, loss_fn)"""
    config = preset("nano", layers=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(0.1 * rng.normal(size=x.shape)), abstract_params(config))
    params["blocks"]["attention"]["norm"]["scale"] += 1
    params["blocks"]["mlp"]["norm"]["scale"] += 1
    return config, params, next_token_objective(config, Execution(), z_loss=1e-4)


@pytest.fixture(scope="module")
def nano_gradients(nano):
    """(params, batch, pieces) -> (gradients, loss, metrics), compiled once for each number of pieces."""
    return jax.jit(lambda params, batch, pieces: accumulate_gradients(nano[2], params, batch, pieces), static_argnums=2,
                   compiler_options=QUICK)


@pytest.mark.parametrize("pieces", [1, 2, 3, 6])
def test_unequal_pieces_add_to_the_gradient_of_the_whole(pieces):
    """With 6 pieces two of them count nothing, and the weights of the others differ by a factor of 6."""
    batch = toy_batch()
    grads, loss, metrics = toy_gradients(TOY_PARAMS, batch, pieces)
    value, expected = jax.jit(jax.value_and_grad(lambda p: jnp.average(
        (batch["x"] @ p["w"] + p["b"] - batch["y"])**2, weights=batch["weights"])))(TOY_PARAMS)
    np.testing.assert_allclose(loss.value, value, rtol=1e-6)
    absolute = jax.jit(toy_loss)(TOY_PARAMS, batch)[1]["absolute"]
    np.testing.assert_allclose(metrics["absolute"].value, absolute.value, rtol=1e-6)
    assert float(loss.weight) == 6.5
    for key in ("w", "b"):
        np.testing.assert_allclose(grads[key], expected[key], rtol=1e-5)


def test_unequal_micro_batches_of_our_model_equal_the_full_batch(nano, nano_gradients):
    """Rows of 16, 5, 0 and 1 counted tokens: four pieces, one of them fully masked."""
    params = nano[1]
    counted = np.arange(16)[None] < np.array([16, 5, 0, 1])[:, None]
    batch = nano_batch(counted.astype(np.float32))
    whole, loss, _ = nano_gradients(params, batch, 1)
    pieces, loss_of_pieces, _ = nano_gradients(params, batch, 4)
    assert float(loss.weight) == float(loss_of_pieces.weight) == 22.0
    np.testing.assert_allclose(loss.value, loss_of_pieces.value, rtol=1e-6)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(pieces), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_a_batch_that_cannot_be_cut():
    with pytest.raises(ValueError, match="a batch of 6 rows cannot be cut into 4 micro-batches"):
        accumulate_gradients(toy_loss, TOY_PARAMS, toy_batch(), 4)


def test_a_fully_masked_batch_is_a_step_with_a_zero_gradient():
    """Loss 0, nothing skipped; the weights move by weight decay alone (and by Adam's momentum, of which a new
    optimizer has none): a step is a step, and padding is rare enough not to be worth a branch."""
    for decay in (0.0, 0.1):
        optimizer = optax.adamw(0.1, weight_decay=decay)
        step = jax.jit(make_train_step(toy_loss, optimizer, microbatches=2))
        state, metrics = step(init_state(TOY_PARAMS, optimizer), toy_batch(weights=[0.0] * 6))
        assert {name: float(value) for name, value in metrics.items()} == {
            "loss": 0.0, "grad_norm": 0.0, "tokens": 0.0, "skipped": 0.0, "skipped_in_a_row": 0.0, "absolute": 0.0}
        for key, before in TOY_PARAMS.items():
            np.testing.assert_allclose(state.params[key], before * (1 - 0.1 * decay), rtol=1e-6)


def test_a_fully_masked_batch_of_our_model_gives_zero_and_zero_gradients(nano, nano_gradients):
    """As padding is: segment 0 everywhere, weights 0."""
    batch = nano_batch(np.zeros((4, 16), np.float32)).replace(segment_ids=np.zeros((4, 16), np.int32))
    grads, loss, _ = nano_gradients(nano[1], batch, 1)
    assert float(loss.value) == 0.0
    assert_same_bits(grads, jax.tree.map(np.zeros_like, nano[1]))


@pytest.mark.parametrize("name, value", [("weights", np.nan), ("y", np.inf), ("x", 1e17)])
def test_steps_that_are_not_finite_change_only_counters(name, value):
    """NaN loss, infinite loss, and a loss of 1e34, finite, whose gradient's norm overflows float32."""
    optimizer = make_optimizer("adamw", 0.1)
    step = jax.jit(make_train_step(toy_loss, optimizer, ema_decay=0.5))
    good = toy_batch()
    bad = {**good, name: good[name].copy()}
    bad[name][0] = value
    before, _ = step(init_state(TOY_PARAMS, optimizer, ema=True), good)
    counts = []
    state = before
    for batch in (bad, bad, good, bad):
        frozen = state
        state, metrics = step(state, batch)
        counts.append((int(state.step), int(state.skipped), int(state.skipped_in_a_row),
                       int(metrics["skipped"]), int(metrics["skipped_in_a_row"])))
        if batch is bad:
            assert_same_bits((state.params, state.opt_state, state.ema),
                             (frozen.params, frozen.opt_state, frozen.ema))
    assert counts == [(2, 1, 1, 1, 1), (3, 2, 2, 2, 2), (4, 2, 0, 2, 0), (5, 3, 1, 3, 1)]
    # The good step after two bad ones is the one that would have come without them.
    assert_same_bits(step(before, good)[0].params, state.params)


def test_the_reported_learning_rate_is_the_one_used():
    """After a skipped step the optimizer's schedule lags the step counter by one."""
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = optax.sgd(schedule)
    step = jax.jit(make_train_step(toy_loss, optimizer, learning_rate=schedule))
    state = init_state(TOY_PARAMS, optimizer)
    good = toy_batch()
    for batch in (good, {**good, "y": good["y"] * np.nan}, good):
        old, (state, metrics) = state, step(state, batch)
    old, state, metrics, grads = jax.device_get((old, state, metrics, toy_gradients(old.params, good, 1)[0]))
    np.testing.assert_allclose(metrics["learning_rate"], 0.09, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], old.params["w"] - metrics["learning_rate"] * grads["w"], rtol=1e-6)


def test_moving_average_by_hand():
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(toy_loss, optimizer, ema_decay=0.75))
    state = init_state(TOY_PARAMS, optimizer, ema=True)
    average = np.array(TOY_PARAMS["w"])
    for _ in range(3):
        state, _ = step(state, toy_batch())
        average = 0.75 * average + 0.25 * np.array(state.params["w"])
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-6)
    assert init_state(TOY_PARAMS, optimizer).ema is None


def test_the_average_has_buffers_of_its_own():
    """Donating a state whose average is its parameters would give one buffer away twice."""
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(toy_loss, optimizer, ema_decay=0.5), donate_argnums=0)
    state, _ = step(init_state(jax.device_put(TOY_PARAMS), optimizer, ema=True), toy_batch())
    assert int(state.step) == 1


def test_metrics_have_these_names():
    optimizer = optax.sgd(0.1)
    batch = toy_batch()
    state, metrics = jax.jit(make_train_step(toy_loss, optimizer, learning_rate=lambda step: 0.1, by_name=True))(
        init_state(TOY_PARAMS, optimizer), batch)
    assert set(metrics) == {"loss", "grad_norm", "tokens", "skipped", "skipped_in_a_row", "learning_rate", "absolute",
                            "update_norm", "grad_norm/w", "grad_norm/b", "param_norm/w", "param_norm/b"}
    grads, loss, _ = toy_gradients(TOY_PARAMS, batch, 1)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(np.sum(grads["w"]**2) + grads["b"]**2), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm/w"], np.linalg.norm(grads["w"]), rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm/w"], np.linalg.norm(state.params["w"]), rtol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], 0.1 * metrics["grad_norm"], rtol=1e-6)
    assert float(metrics["loss"]) == float(loss.value) and float(metrics["tokens"]) == 6.5


def test_our_model_learns_one_batch_by_heart_and_traces_once(nano):
    """Loss from log 256 = 5.5 to under 0.1 in 60 steps, in one compiled program."""
    config, params, loss_fn = nano
    traces = []

    def counted_loss(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    schedule = learning_rate_schedule("cosine", 0.02, warmup_steps=5, total_steps=60)
    optimizer = make_optimizer("adamw", schedule, weight_decay=0.0)
    step = jax.jit(make_train_step(counted_loss, optimizer, learning_rate=schedule), donate_argnums=0,
                   compiler_options=QUICK)
    state = init_state(jax.device_put(params), optimizer)
    batch = nano_batch()
    state, metrics = step(state, batch)
    assert 5.0 < float(metrics["cross_entropy"]) < 6.0
    after_first = len(traces)
    for _ in range(59):
        state, metrics = step(state, batch)
    assert len(traces) == after_first
    assert float(metrics["cross_entropy"]) < 0.1
    assert int(state.step) == 60 and float(metrics["tokens"]) == 64.0


def test_evaluate_divides_once():
    """Batches of 3 and 1 counted tokens: their total over 4, not the mean of two means."""
    def eval_step(params, batch):
        return Mean(jnp.sum(batch), jnp.float32(batch.size)), {"double": Mean(2 * jnp.sum(batch), jnp.float32(1.0))}

    result = evaluate(eval_step, None, [jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0])])
    assert result == {"loss": 4.0, "double": 16.0}
    with pytest.raises(ValueError, match="there is no validation batch"):
        evaluate(eval_step, None, [])


def test_context_is_the_mean_position_of_what_counts():
    batch = Batch(np.zeros((1, 4), np.int32), np.zeros((1, 4), np.int32), np.float32([[0, 1, 1, 0]]))
    assert float(context(batch).value) == 1.5
    assert float(context(batch.replace(positions=np.int32([[0, 1, 0, 1]]))).value) == 0.5


def test_bits_per_byte_of_the_objective(nano):
    """Every token stands for two bytes: bits per byte = nats / log 2 / 2. Ids without an entry count no bytes."""
    config, params, _ = nano
    loss_fn = next_token_objective(config, token_bytes=np.full(250, 2, np.int32))
    batch = nano_batch()
    batch = batch.replace(targets=batch.targets % 250)
    loss, metrics = jax.jit(loss_fn, compiler_options=QUICK)(params, batch)
    np.testing.assert_allclose(metrics["bits_per_byte"].value, loss.value / np.log(2) / 2, rtol=1e-6)
