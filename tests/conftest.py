"""Shared test set-up: eight virtual CPU devices, strict promotion, the real data where it is at hand.

Real data that nobody here wrote is not in the repository (its licences differ). Tests that need it look
in the folder named by the environment variable JAXLLM_TEST_DATA and are skipped, saying so, without it; published
weights are looked for in JAXLLM_TEST_WEIGHTS in the same way.
"""

import gc
import os
import pathlib

import jax
import pytest
from read_keys import EveryKeyIsRead

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of this suite's time on two cores, and its programs run for milliseconds: XLA leaves out its costly
# optimisations, which change no result beyond rounding; and what one worker, process or run has compiled, down to the
# least, the others find here.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
for name, value in (("jax_disable_most_optimizations", True), ("jax_compilation_cache_dir", str(CACHE)),
                    ("jax_persistent_cache_min_compile_time_secs", 0.0)):
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
if jax.__version_info__ < (0, 11) and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    # XLA takes longer over what its emitters of fused loops write in MLIR than over the rest of a compile; without them
    # LLVM gets the loops at once. And it cuts a program into up to 32 modules to compile them side by side, each with a
    # machine description of its own, which costs a fifth where every core has a worker already. Only for versions that
    # have the flags: XLA ends a process whose flag it does not know.
    os.environ["XLA_FLAGS"] = (f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false "
                               "--xla_cpu_parallel_codegen_split_count=1")


def pytest_configure(config):
    """The slow tests, run after the others, fail when both leave a config key that no experiment has read."""
    config.pluginmanager.register(EveryKeyIsRead(config))


@pytest.fixture(scope="session", autouse=True)
def small_arrays_are_saved_whole():
    """orbax has each of the eight replicas cut out and write its own part of an array, which takes a program for every
    shape and device. Below a megabyte the first writes the whole; child processes save as users do.
    """
    import orbax.checkpoint as ocp

    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20), override=True)


@pytest.fixture(scope="session")
def real_data():
    """Returns `path(name)`: a file of the real test data, or skips the test where it is missing."""
    return _folder("real test data", "JAXLLM_TEST_DATA")


@pytest.fixture(scope="session")
def real_weights():
    """Returns `path(name)`: a file of published weights (docs/convert.md), or skips the test where it is missing."""
    return _folder("published weights", "JAXLLM_TEST_WEIGHTS")


def _folder(what: str, variable: str):
    root = os.environ.get(variable)

    def path(name: str) -> pathlib.Path:
        if root is None:
            pytest.skip(f"{what}: set {variable} to the folder that holds {name}")
        found = pathlib.Path(root) / name
        if not found.exists():
            pytest.skip(f"{what}: {name} is not in {variable}")
        return found

    return path


@pytest.fixture(scope="session")
def language_model():
    """Path of fastText's language model, or skips the test: it is in no package that could be installed here."""
    path = os.environ.get("JAXLLM_LANGUAGE_MODEL")
    if not path:
        pytest.skip("language model: set JAXLLM_LANGUAGE_MODEL to lid.176.ftz (docs/curate.md)")
    return path


# Tracing makes millions of small objects and next to no cycles.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """What a module leaves behind, traces and programs above all, is not walked by the collector again and again, which
    was an eighth of the suite's time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def strict_dtypes(request):
    """No silent promotion in our arithmetic. optax promotes on its own, so tests that step it are left out."""
    if request.path.parent.name in ("model", "infer"):
        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield
