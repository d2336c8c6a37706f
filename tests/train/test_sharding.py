"""The same training on every mesh, and every array where its spec says it lies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.data.packing import Batch
from jaxllm.model.config import Execution, preset
from jaxllm.model.params import abstract_params, init
from jaxllm.model.transformer import embed
from jaxllm.train import sharding
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.sharding import check_batch, host_rows, make_mesh, put_batch, state_shardings
from jaxllm.train.step import init_state, make_train_step

CONFIG = preset("nano", heads=8, kv_heads=4, tied_embedding=False, qk_norm=True)
# Adam's first steps are nearly signs of the gradient: a larger rate makes its last bits visible in later losses.
OPTIMIZER = make_optimizer("adamw", 3e-3, clip_norm=0.0)
ROWS, LENGTH, STEPS, BETA1 = 16, 16, 6, 0.9
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


def new_state(optimizer=OPTIMIZER):
    return init_state(init(CONFIG, jax.random.key(0)), optimizer, ema=True)


def drawn_state():
    """As `new_state`, drawn by numpy: nothing to compile, and the same bits whatever the mesh."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(new_state)
    params = jax.tree.map(lambda x: np.float32(0.1 * rng.normal(size=x.shape) + (x.ndim < 3)), shapes.params)
    params["head"] -= 1.0
    params["embedding"]["tokens"] -= 1.0
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return zeros.replace(params=params, ema=jax.tree.map(np.copy, params))


def batch_at(step):
    """Rows of very unequal numbers of counted tokens, in two segments; two batches by turns."""
    rng = np.random.default_rng(step % 2)
    ids = rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
    counted = np.arange(LENGTH)[None] < rng.integers(0, LENGTH + 1, (ROWS, 1))
    first = np.arange(LENGTH) < 7
    segments = np.broadcast_to(np.where(first, 1, 2), (ROWS, LENGTH)).astype(np.int32)
    positions = np.broadcast_to(np.where(first, np.arange(LENGTH), np.arange(LENGTH) - 7), (ROWS, LENGTH))
    return Batch(ids[:, :-1], ids[:, 1:], counted.astype(np.float32), segments, positions.astype(np.int32))


def run(mesh=None):
    """(losses, first gradients, last state, shardings asked for); the gradients are read off Adam's first moment."""
    step = make_train_step(next_token_objective(CONFIG, chunks=2), OPTIMIZER, microbatches=2, ema_decay=0.9)
    state, shardings = drawn_state(), None
    if mesh is not None:
        shardings = state_shardings(state, CONFIG, mesh)
    state = jax.device_put(state, shardings)
    # Quick to compile, slow to run: what XLA does about the mesh is the same at every level.
    step = jax.jit(step, donate_argnums=0, out_shardings=None if mesh is None else (shardings, None),
                   compiler_options={"xla_backend_optimization_level": 0})
    losses, grads = [], None
    for number in range(STEPS):
        batch = batch_at(number) if mesh is None else put_batch(batch_at(number), mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if grads is None:
            grads = jax.tree.map(lambda mu: np.asarray(mu) / (1 - BETA1), state.opt_state[0].mu)
    return losses, grads, state, shardings


@pytest.fixture(scope="module")
def alone():
    """The run without any mesh."""
    return run()


@pytest.mark.parametrize("shape", [
    pytest.param(shape, id="x".join(map(str, shape)), marks=[pytest.mark.slow] * (8 in shape)) for shape in MESHES])
def test_every_mesh_trains_as_none_does(shape, alone, capfd):
    """Losses within 1e-5, first gradients within 1e-6, in 2 micro-batches and 2 loss chunks, with segments; no array
    strays from its declared place, and XLA never falls back to replicating an activation to move it."""
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh):
        losses, grads, state, declared = run(mesh)
    np.testing.assert_allclose(losses, alone[0], rtol=0, atol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    for (path, array), place in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(declared),
                                    strict=True):
        assert array.sharding == place, jax.tree_util.keystr(path)
    data, fsdp, tensor = shape
    query = state.params["blocks"]["attention"]["query"]
    assert query.addressable_shards[0].data.shape == (2, 32 // fsdp, 8 // tensor, 8)
    assert state.opt_state[0].nu["head"].addressable_shards[0].data.shape == (32 // fsdp, 256 // tensor)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_the_losses_fall_and_depend_on_the_batch(alone):
    """The trajectory that the meshes are held to is a real one."""
    losses = alone[0]
    assert losses[-1] < losses[1] - 0.1 and losses[-2] < losses[0] - 0.1 and len(set(losses)) == STEPS


def specs(tree):
    return {jax.tree_util.keystr(path): place.spec for path, place in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_and_averages_lie_as_their_parameters(name):
    mesh = make_mesh((2, 2, 2))
    state = jax.eval_shape(functools.partial(new_state, optimizer=make_optimizer(name, 1e-3)))
    placed = specs(state_shardings(state, CONFIG, mesh))
    down, tokens = "['blocks']['mlp']['down']", "['embedding']['tokens']"
    expected = {down: P(None, "tensor", "fsdp"), tokens: P("tensor", "fsdp"), "['head']": P("fsdp", "tensor"),
                "['blocks']['attention']['query']": P(None, "fsdp", "tensor", None),
                "['blocks']['attention']['output']": P(None, "tensor", None, "fsdp"),
                "['blocks']['attention']['norm']['scale']": P(None, None), "['final_norm']['scale']": P(None)}
    for end, spec in expected.items():
        copies = {path: where for path, where in placed.items() if path.endswith(end)}
        # params, ema, and two moments of Adam or Muon's one.
        assert len(copies) == (3 if name == "muon" and "blocks" in end and "norm" not in end else 4), copies
        assert set(copies.values()) == {spec}
    scalars = {path: spec for path, spec in placed.items()
               if path in (".step", ".skipped", ".skipped_in_a_row") or path.endswith((".count", ".ns_coeffs"))}
    assert len(scalars) >= 4 and set(scalars.values()) == {P()}


def test_an_array_of_another_shape_does_not_lie_as_its_namesake():
    """A factored moment has its parameter's path but not its shape."""
    mesh = make_mesh((2, 2, 2))
    tree = {"head": jax.ShapeDtypeStruct((1, 1), jnp.float32), "other": jax.ShapeDtypeStruct((32, 256), jnp.float32)}
    assert specs(state_shardings(tree, CONFIG, mesh)) == {"['head']": P(), "['other']": P()}


def test_parameters_that_do_not_split():
    with pytest.raises(ValueError, match="'kv_heads' dimension of 2 cannot be split over 4 devices"):
        state_shardings({}, preset("nano"), make_mesh((1, 2, 4)))


def test_make_mesh_fills_in_the_rest_and_has_auto_axes():
    mesh = make_mesh((2, -1, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert dict(make_mesh((1, 2, 1), jax.devices()[:2]).shape) == {"data": 1, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("sizes, words", [
    ((2, 2), "must give a size to each of"),
    ((-1, -1, 2), "one of which may be -1"),
    ((0, 1, 1), "must hold positive sizes"),
    ((-2, 2, 2), "must hold positive sizes"),
    ((3, 1, 1), "does not use exactly the 8 devices"),
    ((2, 2, 1), "does not use exactly the 8 devices"),
    ((-1, 3, 1), "does not use exactly the 8 devices"),
])
def test_meshes_that_do_not_fit(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(sizes)


def test_check_batch():
    mesh = make_mesh((2, 2, 2))
    check_batch(8, 2, mesh)
    with pytest.raises(ValueError, match=r"batch_size \(12\) must be a multiple of data x fsdp x microbatches "
                                         r"\(2 x 2 x 2\)"):
        check_batch(12, 2, mesh)


def test_put_batch_lays_rows_over_data_and_fsdp():
    mesh = make_mesh((2, 2, 2))
    placed = put_batch(dataclasses.replace(batch_at(0), segment_ids=None, positions=None), mesh)
    assert placed.segment_ids is None
    assert placed.tokens.sharding == NamedSharding(mesh, P(("data", "fsdp"), None))
    assert placed.tokens.addressable_shards[0].data.shape == (4, LENGTH)
    np.testing.assert_array_equal(placed.tokens, batch_at(0).tokens)


def test_one_process_reads_every_row():
    assert [host_rows(16, make_mesh(shape)) for shape in MESHES] == [(0, 1)] * 4


class Rows:
    """In place of the batch's sharding: this process's devices hold these rows."""

    def __init__(self, *rows):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {number: (slice(*row), slice(None)) for number, row in enumerate(self.rows)}


def test_rows_of_one_process_among_several(monkeypatch):
    def rows(*held):
        monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Rows(*held))
        return host_rows(8, None)
    assert rows((4, 6), (6, 8)) == (1, 2)
    assert rows((2, 4), (2, 4)) == (1, 4)  # two devices of a tensor group hold the same rows
    assert rows((None, None)) == (0, 1)
    assert rows((6, None)) == (3, 4)
    for held in (((0, 2), (4, 6)), ((0, 2), (6, 8)), ((2, 4), (4, 6))):
        with pytest.raises(ValueError, match="not one even slice; order the mesh"):
            rows(*held)


def test_a_program_of_explicit_axes_calls_us_through_auto_axes(alone):
    """Another project's mesh has Explicit axes, JAX's default: `auto_axes` around our function is all it takes, and
    its gradients are those of the run without a mesh."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3)
    loss_fn = next_token_objective(CONFIG)
    params, batch = drawn_state().params, batch_at(0)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, CONFIG, mesh))
        rows = jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp"), None)))
        mean = jax.sharding.auto_axes(lambda params, batch: loss_fn(params, batch)[0].value, out_sharding=P())
        loss, grads = jax.jit(jax.value_and_grad(mean), compiler_options={"xla_backend_optimization_level": 0})(
            placed, rows)
    np.testing.assert_allclose(loss, alone[0][0], atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(alone[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with jax.set_mesh(mesh), pytest.raises(Exception, match="(?i)explicit|sharding"):
        jax.eval_shape(lambda params, batch: loss_fn(params, batch)[0].value, placed, rows)


def test_learned_positions_are_looked_up_without_replicating_activations(capfd):
    """A position of its own for every token makes a gather from a table split over fsdp."""
    config = dataclasses.replace(CONFIG, positions="learned")
    mesh, batch = make_mesh((2, 2, 2)), batch_at(0)
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(config))
    places = state_shardings(params, config, mesh)

    def loss(params, batch):
        return jnp.sum(jnp.square(embed(params, config, batch.tokens, batch.positions, Execution())))
    with jax.set_mesh(mesh):
        grads = jax.jit(jax.grad(loss), out_shardings=places)(jax.device_put(params, places), put_batch(batch, mesh))
    counts = np.bincount(batch.positions.ravel(), minlength=config.max_positions)
    np.testing.assert_array_equal(grads["embedding"]["positions"], np.repeat(4.0 * counts[:, None], config.dim, 1))
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
