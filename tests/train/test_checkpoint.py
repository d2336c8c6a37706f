"""Checkpoints come back bit for bit, on any mesh, after any kill and any failed write; model folders too."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.data.packing import Batch
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import preset
from jaxllm.model.convert import to_hugging_face
from jaxllm.model.lora import lora
from jaxllm.model.params import abstract_params, init, unstack_blocks
from jaxllm.model.quantize import quantize
from jaxllm.train.checkpoint import Checkpoints, load_model, save_model
from jaxllm.train.objective import next_token_objective
from jaxllm.train.optimizer import make_optimizer
from jaxllm.train.sharding import make_mesh, state_shardings
from jaxllm.train.step import TrainState, init_state, make_train_step

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = preset("nano", layers=1, heads=8, kv_heads=4)


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), tree)


def drawn_state(optimizer="adamw", config=CONFIG, seed=0):
    """Every array of a state filled with numbers, without compiling anything."""
    return drawn(jax.eval_shape(lambda: init_state(init(config, jax.random.key(0)), make_optimizer(optimizer, 1e-3),
                                                   ema=True)), seed)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


def target(state, shardings=None):
    if shardings is None:
        shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


@pytest.fixture
def checkpoints(tmp_path):
    opened = []

    def open_at(name="checkpoints", **settings):
        opened.append(Checkpoints(tmp_path / name, **settings))
        return opened[-1]
    yield open_at
    for one in opened:
        one.close()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_comes_back_on_any_mesh(optimizer, checkpoints):
    """Saved from 1x8x1, read onto 2x2x2, 8x1x1 and one device: the same bits, each laid out as asked."""
    state = drawn_state(optimizer)
    saved = jax.device_put(state, state_shardings(state, CONFIG, make_mesh((1, 8, 1))))
    store = checkpoints()
    store.save(3, saved)
    store.wait()
    for shape in ((2, 2, 2), (8, 1, 1)):
        places = state_shardings(state, CONFIG, make_mesh(shape))
        found = checkpoints().restore(target(state, places))
        assert_same_bits(found, state)
        assert jax.tree.map(lambda x: x.sharding, found) == places
    assert found.params["embedding"]["tokens"].sharding.spec == P("tensor", "fsdp")
    found = store.restore(target(state), step=3)
    assert_same_bits(found, state)
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(found))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(checkpoints):
    """2N steps = N, save, N more in new objects; the save is still under way while its arrays are donated on."""
    optimizer = make_optimizer("adamw", optax.linear_schedule(1e-2, 0.0, 6))
    loss_fn = next_token_objective(CONFIG)

    def compiled():
        return jax.jit(make_train_step(loss_fn, optimizer, ema_decay=0.9), donate_argnums=0,
                       compiler_options={"xla_backend_optimization_level": 0})

    def train(step, state, steps):
        for _ in range(steps):
            ids = np.random.default_rng(int(state.step)).integers(0, 256, (2, 9)).astype(np.int32)
            state, _ = step(state, Batch(ids[:, :-1], ids[:, 1:], np.ones((2, 8), np.float32)))
        return state
    start = init_state(jax.device_put(drawn(abstract_params(CONFIG))), optimizer, ema=True)
    store = checkpoints()
    step = compiled()
    half = train(step, start, 3)
    copy = jax.tree.map(np.copy, jax.device_get(half))
    store.save(3, half)
    whole = train(step, half, 3)
    store.wait()
    again = checkpoints()
    assert again.latest == 3
    restored = again.restore(target(copy))
    assert_same_bits(restored, copy)
    assert_same_bits(train(compiled(), restored, 3), whole)
    assert int(whole.step) == 6


TOY = {"a": np.arange(6, dtype=np.float32), "b": {"c": np.ones((2, 2), np.float32)}}


def test_the_last_ones_and_the_best_are_kept(checkpoints):
    """Best by validation loss; one without it, or with one that is not finite, is never the best."""
    store = checkpoints(keep_last=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, float("nan")), (5, 2.0), (6, None), (7, 1.5)):
        store.save(step, TOY, None if loss is None else {"validation_loss": loss, "bits": 1.0})
    store.wait()
    assert sorted(path.name for path in store.folder.iterdir()) == ["2", "6", "7"]
    again = checkpoints(keep_last=1)
    again.save(8, TOY, {"validation_loss": 0.5})
    again.wait()
    assert sorted(path.name for path in store.folder.iterdir()) == ["8"]


def test_a_step_already_saved_is_left_alone(checkpoints):
    store = checkpoints()
    store.save(1, TOY)
    store.save(1, {**TOY, "a": TOY["a"] + 1})
    store.wait()
    assert_same_bits(store.restore(target(TOY)), TOY)


def test_no_checkpoint(checkpoints):
    store = checkpoints()
    assert store.latest is None
    with pytest.raises(FileNotFoundError, match="holds no checkpoint$"):
        store.restore(target(TOY))
    store.save(1, TOY)
    store.wait()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of step 7"):
        store.restore(target(TOY), step=7)


def test_a_checkpoint_of_another_shape_lists_the_arrays(checkpoints):
    store = checkpoints()
    store.save(1, drawn_state())
    store.wait()
    wider = drawn_state(config=preset("nano", layers=1, heads=8, kv_heads=4, mlp_dim=48))
    with pytest.raises(ValueError, match=r"/checkpoints/1 does not fit this model and optimizer: "
                                         r"ema/blocks/mlp/down: checkpoint \(1, 96, 32\), run \(1, 48, 32\); .*"
                                         r"and 8 more\. Use the settings it was made with"):
        store.restore(target(wider))
    with pytest.raises(ValueError, match=r"ema/blocks/attention/key: checkpoint \(1, 32, 4, 8\), run lacks it"):
        store.restore(target(drawn_state().replace(ema=None)))
    with pytest.raises(ValueError, match="opt_state/.*lacks it"):
        store.restore(target(drawn_state("muon")))


def run_python(code: str, *arguments, **settings) -> subprocess.Popen:
    """A process of its own, with one CPU device and nothing of this one's state."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, text=True, **settings)


SAVE_FOREVER = """
    import sys
    import numpy as np
    from jaxllm.train.checkpoint import Checkpoints
    store = Checkpoints(sys.argv[1], keep_last=2)
    step = 0
    while True:
        step += 1
        store.save(step, {"a": np.full((400, 500), step, np.float32), "b": np.full(10, step, np.int32)})
        if step % 3 == 0:
            store.wait()
            print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path, checkpoints):
    """Three processes that do nothing but save; each is killed somewhere in the middle of it."""
    children = [run_python(SAVE_FOREVER, tmp_path / str(number)) for number in range(3)]
    pick = random.Random(0)
    for number, child in enumerate(children):
        done = int(child.stdout.readline())
        time.sleep(pick.uniform(0.05, 0.4))
        child.kill()
        rest = child.communicate(timeout=60)[0].split("\n")[:-1]  # a last line cut short is no promise
        assert child.returncode == -signal.SIGKILL
        done = int(rest[-1]) if rest else done
        store = checkpoints(str(number))
        assert store.latest >= done
        found = store.restore(target({"a": np.zeros((400, 500), np.float32), "b": np.zeros(10, np.int32)}))
        assert set(np.unique(found["a"])) == set(np.unique(found["b"])) == {store.latest}
        assert not list(store.folder.glob("*tmp*"))


FILL_THE_DISK = """
    import json, pathlib, resource, sys
    import jax, numpy as np
    from jaxllm.data.tokenizer import train_tokenizer
    from jaxllm.model.config import preset
    from jaxllm.model.params import abstract_params
    from jaxllm.train.checkpoint import Checkpoints, save_model
    folder, errors = pathlib.Path(sys.argv[1]), []
    rng = np.random.default_rng(0)
    def big(step):
        return {"a": rng.normal(size=50_000).astype(np.float32), "step": np.int32(step)}
    def attempt(function, *arguments):
        try:
            function(*arguments)
        except Exception as error:
            errors.append([type(error).__name__, str(error)])
    config = preset("nano", dim=128)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_params(config))
    tokenizer = train_tokenizer(["a b c"], vocab_size=264)
    store = Checkpoints(folder / "checkpoints")
    for step in (1, 2):
        store.save(step, big(step))
    store.wait()
    save_model(folder / "model", params, config, tokenizer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # from here on a write of more fails
    def save_and_wait(step):
        store.save(step, big(step))
        store.wait()
    def save_twice(step):
        store.save(step, big(step))
        store.save(step + 1, big(step + 1))  # finds that the one before failed
        store.wait()
    attempt(save_and_wait, 3)
    attempt(save_twice, 4)
    attempt(save_model, folder / "model", params, config, tokenizer)
    print(json.dumps(errors), flush=True)
    sys.exit(1)
"""


def test_a_full_disk_names_the_last_good_checkpoint(tmp_path, checkpoints):
    """Real failing writes. The sentences name the cause; nothing half-written stays; the old files are whole."""
    child = run_python(FILL_THE_DISK, tmp_path, stderr=subprocess.PIPE)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1, err
    errors = json.loads(out)
    assert [name for name, _ in errors] == ["OSError"] * 3
    for _, text in errors[:2]:
        assert "could not be written to" in text and "File too large" in text
        assert "the last good checkpoint is step 2; free space on the disk" in text
    assert "the model could not be written" in errors[2][1] and "File too large" in errors[2][1]
    assert all(len(text) < 600 and "\n" not in text for _, text in errors)
    assert "ERROR:absl" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "model"]
    store = checkpoints()
    assert sorted(path.name for path in store.folder.iterdir()) == ["1", "2"]
    found = store.restore(target({"a": np.zeros(50_000, np.float32), "step": np.int32(0)}))
    assert store.latest == int(found["step"]) == 2 and np.asarray(found["a"]).std() > 0.9
    assert load_model(tmp_path / "model")[1].dim == 128


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat", "the dog sat on the log"], vocab_size=275)


def test_a_model_folder_comes_back(tmp_path, tokenizer):
    params = drawn(abstract_params(CONFIG))
    save_model(tmp_path / "run" / "model", params, CONFIG, tokenizer)
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == ["config.json", "params",
                                                                                  "tokenizer"]
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        found, config, found_tokenizer = load_model(folder)
        assert_same_bits(found, params)
        assert config == CONFIG
        assert found_tokenizer.fingerprint == tokenizer.fingerprint
    half, _, _ = load_model(tmp_path / "run", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(half["final_norm"]["scale"], params["final_norm"]["scale"].astype(jnp.bfloat16))
    places = state_shardings(params, CONFIG, make_mesh((1, 2, 4)))
    found, _, _ = load_model(tmp_path / "run", shardings=places)
    assert jax.tree.map(lambda x: x.sharding, found) == places
    assert_same_bits(found, params)


def test_a_model_folder_is_replaced_whole(tmp_path, tokenizer):
    first, second = drawn(abstract_params(CONFIG), 1), drawn(abstract_params(CONFIG), 2)
    folder = tmp_path / "model"
    save_model(folder, first, CONFIG, tokenizer)

    class Broken:
        def save(self, folder):
            raise RuntimeError("no room")
    with pytest.raises(OSError, match=r"the model could not be written to .*model \(no room\)"):
        save_model(folder, second, CONFIG, Broken())
    assert_same_bits(load_model(folder)[0], first)
    save_model(folder, second, CONFIG, tokenizer)
    assert_same_bits(load_model(folder)[0], second)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_two_renames_loses_no_model(tmp_path, tokenizer):
    """The next save puts the old folder back before it begins, so that failing in its turn it still leaves one."""
    params = drawn(abstract_params(CONFIG))
    save_model(tmp_path / "model", params, CONFIG, tokenizer)
    os.replace(tmp_path / "model", tmp_path / "model.old")
    with pytest.raises(OSError, match="could not be written"):
        save_model(tmp_path / "model", params, CONFIG, object())
    assert_same_bits(load_model(tmp_path / "model")[0], params)


def test_folders_that_are_not_models(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="is not a model: it needs config.json, params/ and tokenizer/"):
        load_model(tmp_path)
    save_model(tmp_path / "model", drawn(abstract_params(CONFIG)), CONFIG, tokenizer)
    path = tmp_path / "model" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "mlp_dim": 48}))
    with pytest.raises(ValueError, match=r"blocks/mlp/down: checkpoint \(1, 96, 32\), run \(1, 48, 32\)"):
        load_model(tmp_path)
    path.write_text(json.dumps({**settings, "mlp_dims": 48}))
    with pytest.raises(ValueError, match="config.json does not hold a model configuration"):
        load_model(tmp_path)


def test_a_state_is_saved_whole(checkpoints):
    """Counters, averages and optimizer: what a step changes is what a checkpoint holds."""
    state = TrainState(step=jnp.int32(7), params={"w": jnp.ones(2)}, opt_state=optax.adam(0.1).init({"w": jnp.ones(2)}),
                       ema=None, skipped=jnp.int32(2), skipped_in_a_row=jnp.int32(1))
    store = checkpoints()
    store.save(7, state)
    store.wait()
    assert_same_bits(store.restore(target(state)), state)


@pytest.mark.parametrize("change", [
    lambda params: jax.jit(quantize, static_argnums=(1, 2))(params, CONFIG, "int8"), unstack_blocks,
    lambda params: lora(params, CONFIG, rank=2, alpha=2, key=jax.random.key(1))], ids=["int8", "unstacked", "lora"])
def test_a_tree_that_could_not_be_read_again_is_refused_before_anything_is_written(change, tmp_path):
    tokenizer = train_tokenizer(["a b"], vocab_size=263)
    params = jax.device_put(drawn(abstract_params(CONFIG)))
    save_model(tmp_path / "model", params, CONFIG, tokenizer)
    tree = change(params)
    with pytest.raises(ValueError, match="merge LoRA factors first"):
        save_model(tmp_path / "model", tree, CONFIG, tokenizer)
    back, _, _ = load_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(ValueError, match="merge LoRA factors first"):
        to_hugging_face(tree, CONFIG)
