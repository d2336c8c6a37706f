"""Schedules at literal steps, the decay mask of a literal tree, updates against optax and Muon's definition."""

import jax
import numpy as np
import optax
import pytest

from jaxllm.model.config import preset
from jaxllm.model.params import abstract_params
from jaxllm.train.optimizer import decay_mask, learning_rate_schedule, make_optimizer


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.1 * random.normal(size=leaf.shape).astype(np.float32),
                        abstract_params(preset("nano")))


@pytest.fixture(scope="module")
def grads(params):
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)


def first_updates(optimizer, params, grads):
    """What a new optimizer makes of its first gradients."""
    return jax.jit(lambda params, grads: optimizer.update(grads, optimizer.init(params), params)[0])(params, grads)


def at(schedule, *steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize("name, middle", [("cosine", 5.5), ("linear", 5.5), ("wsd", 10.0)])
def test_schedules_at_literal_steps(name, middle):
    """4 steps up to 10, then down to 1 at step 104; step 54 is the middle of the way down."""
    schedule = learning_rate_schedule(name, 10.0, warmup_steps=4, total_steps=104)
    np.testing.assert_allclose(at(schedule, 0, 1, 2, 3, 4, 54, 104, 200),
                               [2.5, 5.0, 7.5, 10.0, 10.0, middle, 1.0, 1.0], rtol=1e-6)


def test_the_cosine_is_a_cosine():
    schedule = learning_rate_schedule("cosine", 10.0, warmup_steps=0, total_steps=100, final_fraction=0.0)
    np.testing.assert_allclose(at(schedule, 0, 25, 50, 100), [10.0, 5 + 5 * np.sqrt(0.5), 5.0, 0.0], atol=1e-5)


def test_wsd_holds_and_then_falls_over_the_last_part():
    schedule = learning_rate_schedule("wsd", 10.0, warmup_steps=10, total_steps=100, final_fraction=0.0,
                                      decay_fraction=0.4)
    np.testing.assert_allclose(at(schedule, 9, 10, 60, 70, 80, 99, 100), [10, 10, 10, 7.5, 5, 0.25, 0], atol=1e-5)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_or_one_step_of_it_begins_at_the_peak(warmup):
    assert at(learning_rate_schedule("linear", 2.0, warmup_steps=warmup, total_steps=5), 0) == [2.0]


@pytest.mark.parametrize("changes, words", [
    ({"name": "cosin"}, r"optimizer.schedule is 'cosin'; choose one of \('cosine', 'linear', 'wsd'\)"),
    ({"warmup_steps": 10}, r"warmup_steps \(10\) must be at least 0 and less than steps \(10\)"),
    ({"warmup_steps": -1}, "warmup_steps"),
    ({"final_fraction": 1.5}, r"final_fraction \(1.5\) must lie in \[0, 1\]"),
    ({"name": "wsd", "decay_fraction": 0.0}, r"decay_fraction \(0.0\) must lie in \(0, 1\]"),
    ({"peak": -1.0}, r"learning_rate \(-1.0\) must be above 0"),
])
def test_impossible_schedules(changes, words):
    settings = {"name": "cosine", "peak": 1.0, "warmup_steps": 1, "total_steps": 10} | changes
    with pytest.raises(ValueError, match=words):
        learning_rate_schedule(**settings)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match=r"optimizer.name is 'sgd'; choose one of \('adamw', 'muon'\)"):
        make_optimizer("sgd", 1e-3)


def test_decay_mask_is_by_path():
    """Stacked norms and biases are matrices by rank; they are left out all the same."""
    config = preset("nano", norm="layer", positions="learned", bias="all", qk_norm=True, mlp="gelu")
    norm = {"scale": False, "bias": False}
    assert decay_mask(abstract_params(config)) == {
        "embedding": {"tokens": True, "positions": True},
        "final_norm": norm,
        "blocks": {
            "attention": {"norm": norm, "query_norm": norm, "key_norm": norm,
                          "query": True, "key": True, "value": True, "output": True,
                          "query_bias": False, "key_bias": False, "value_bias": False, "output_bias": False},
            "mlp": {"norm": norm, "up": True, "down": True, "up_bias": False, "down_bias": False}}}


def test_adamw_step_by_hand(params, grads):
    """The first step of AdamW moves by lr (sign-like g / (|g| + eps) + decay p), here after clipping to norm 1."""
    optimizer = make_optimizer("adamw", 0.01, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.5, clip_norm=1.0)
    updates = first_updates(optimizer, params, grads)
    norm = np.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(grads)))

    def expected(p, g, decays):
        g = g / norm
        return -0.01 * (g / (np.abs(g) + 1e-3) + (0.5 * p if decays else 0.0))
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(updates),
                                    jax.tree.leaves(jax.tree.map(expected, params, grads, decay_mask(params))),
                                    strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7, err_msg=str(path))


def test_clipping_can_be_left_off(params, grads):
    settings = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.5}
    ours = make_optimizer("adamw", 0.01, clip_norm=0.0, **settings)
    theirs = optax.adamw(0.01, 0.8, 0.9, 1e-3, weight_decay=0.5, mask=decay_mask(params))
    for a, b in zip(jax.tree.leaves(first_updates(ours, params, grads)),
                    jax.tree.leaves(first_updates(theirs, params, grads)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.fixture(scope="module")
def muon_updates(params, grads):
    optimizer = make_optimizer("muon", 0.01, weight_decay=0.0, clip_norm=0.0)
    return first_updates(optimizer, params, grads)


# Parameter of one layer -> its matrix (inputs, outputs).
MATRICES = {("attention", "query"): (32, 32), ("attention", "key"): (32, 16), ("attention", "value"): (32, 16),
            ("attention", "output"): (32, 32), ("mlp", "up"): (32, 96), ("mlp", "gate"): (32, 96),
            ("mlp", "down"): (96, 32)}


@pytest.mark.parametrize("part, name", MATRICES)
def test_muon_orthogonalises_each_layer_s_matrix(muon_updates, part, name):
    """Five Newton-Schulz steps put singular values in 0.5 to 1.5 (Jordan), scaled by 0.2 sqrt(max(in, out)) (Liu).

    In the eye of a matrix of Gaussian noise they spread over a factor of 50 or more.
    """
    inputs, outputs = MATRICES[part, name]
    for layer in range(2):
        update = muon_updates["blocks"][part][name][layer].reshape(inputs, outputs)
        values = np.linalg.svd(update / (-0.01 * 0.2 * np.sqrt(max(inputs, outputs))), compute_uv=False)
        assert 0.5 < values.min() and values.max() < 1.5, values


def test_muon_follows_the_gradient_s_singular_vectors(muon_updates, grads):
    """The update is near U V' of the gradient U S V', layer by layer: no layer's matrix mixes with another's."""
    for layer in range(2):
        u, _, vt = np.linalg.svd(grads["blocks"]["mlp"]["up"][layer], full_matrices=False)
        update = np.asarray(muon_updates["blocks"]["mlp"]["up"][layer]).ravel()
        target = -(u @ vt).ravel()
        assert update @ target / np.linalg.norm(update) / np.linalg.norm(target) > 0.97


def test_muon_leaves_the_rest_to_adam_without_decay(params, grads):
    optimizer = make_optimizer("muon", 0.01, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.5, clip_norm=0.0)
    updates = first_updates(optimizer, params, grads)
    adam = optax.adamw(0.01, 0.8, 0.9, 1e-3, weight_decay=0.0, nesterov=True)
    expected = first_updates(adam, params, grads)
    for path in (("embedding", "tokens"), ("final_norm", "scale"), ("blocks", "mlp", "norm", "scale"),
                 ("blocks", "attention", "norm", "scale")):
        ours, theirs = updates, expected
        for key in path:
            ours, theirs = ours[key], theirs[key]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=str(path))


def test_muon_decays_its_matrices(params, grads, muon_updates):
    optimizer = make_optimizer("muon", 0.01, weight_decay=0.5, clip_norm=0.0)
    updates = first_updates(optimizer, params, grads)
    difference = updates["blocks"]["mlp"]["down"] - muon_updates["blocks"]["mlp"]["down"]
    np.testing.assert_allclose(difference, -0.01 * 0.5 * params["blocks"]["mlp"]["down"], atol=1e-6)
