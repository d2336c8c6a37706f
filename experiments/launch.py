"""How every experiment starts: a config file, a run folder, one line and exit code 1 for bad input.

    python -m experiments.NAME --config=configs/FILE.py --config.key=value --workdir=runs/a

On a cluster every process runs the same command with `--distributed`; Slurm, GKE and TPU pods tell JAX the rest. By
hand: `--distributed --coordinator=HOST:PORT --processes=N --process=I`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

BAD_INPUT = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, OSError)


def run(main: Callable[[ConfigDict, str], None], default_config: str, default_workdir: str | None = None) -> None:
    """Parses the flags, sets the process up and calls `main(config, workdir)`; exits 1 on bad input.

    Args:
      main: the experiment. It raises ValueError or OSError, with a sentence, for what the user must change.
      default_config: config file, relative to the repository.
      default_workdir: run folder when `--workdir` is not given; None makes it `runs/<config file's name>`.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    with _mistyped_key():  # config_flags looks at the overrides already here
        config_flag = config_flags.DEFINE_config_file(
            "config", str(root / default_config), "Config file; --config.key=value changes a key.", lock_config=True)
    workdir_flag = flags.DEFINE_string("workdir", None, "Run folder, made or resumed.")
    distributed = flags.DEFINE_bool("distributed", False, "Join the other processes of this job.")
    coordinator = flags.DEFINE_string("coordinator", None, "host:port of process 0, where the cluster does not tell.")
    processes = flags.DEFINE_integer("processes", None, "How many processes, where the cluster does not tell.")
    process = flags.DEFINE_integer("process", None, "Which one this is, where the cluster does not tell.")

    def start(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"unexpected argument {argv[1]!r}: settings are given as --config.key=value")
        name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        workdir = workdir_flag.value or default_workdir or os.path.join("runs", name)
        logging.set_verbosity(logging.WARNING)
        set_up_process()
        if distributed.value:
            jax.distributed.initialize(coordinator.value, processes.value, process.value)
        try:
            main(config_flag.value, workdir)
        except BAD_INPUT as error:
            if os.environ.get("JAXLLM_TRACEBACK"):
                raise
            sys.exit(f"{type(error).__name__}: {error}\n(JAXLLM_TRACEBACK=1 shows where)")

    with _mistyped_key():
        argv = app.parse_flags_with_usage(sys.argv)
    app.run(start, argv=argv, flags_parser=lambda argv: argv)


@contextlib.contextmanager
def _mistyped_key():
    """A mistyped config key is one line and exit code 1, no traceback."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        message = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        sys.exit(f"bad --config override, no such key: {message}")


def set_up_process() -> None:
    """A compilation cache on disk, and on a CPU an allocator that keeps its memory.

    Every training step allocates and frees the same large buffers; glibc gives them back to the system each
    time, and faulting them in again is a large share of a small model's step.
    """
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/jaxllm/xla"))
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if sys.platform == "linux":
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(M_TOP_PAD, 256 * 2**20)
            libc.mallopt(M_ARENA_MAX, 1)  # the arenas of XLA's threads would unmap theirs all the same
