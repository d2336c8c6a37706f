"""How soon the expected curve of a small config shows a bug: injected ones, and clean runs as control.

    python -m experiments.expected_curves                              # with the band that is shipped
    python -m experiments.expected_curves --config=configs/expected_curves.py:sft_nano           # of fine-tuning
    python -m experiments.expected_curves --config=configs/expected_curves.py:policy_nano        # of policy gradient
    python -m experiments.expected_curves --config.make_band=True --config.bugs="()" --config.clean_seeds="()"

The last makes the band anew; `--config=configs/expected_curves.py:pretrain_tiny` that of another config. Fine-tuning
needs the model of `python -m experiments.pretrain --config=configs/pretrain_nano.py`.
Expected: docs/expected_curves.md.
"""

import importlib
import pathlib

from ml_collections import ConfigDict

_EXPERIMENTS = {"pretrain": "pretrain", "sft": "sft", "policy": "expected_curves_policy"}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is sft_nano, policy_nano or a config of experiments.pretrain, pretrain_nano by default.
    """
    name = arg or "pretrain_nano"
    kind = name.partition("_")[0]
    config = ConfigDict()
    # What is run, and its config; the seed is set by the seeds below.
    config.experiment = _EXPERIMENTS[kind]
    config.run = importlib.import_module(f"configs.{name}").get_config()
    # Where its band is, and whether to make it anew, from these seeds.
    config.band = str(pathlib.Path("configs") / "bands" / f"{name}.json")
    config.make_band = False
    config.band_seeds = (0, 1, 2, 3, 4)
    # An alarm: some metric at some step is farther off than this many sigmas (of a normal distribution; see
    # experiments/expected_curves_band.py).
    config.sigmas = 4.0
    # Seeds without a bug, none of them in the band: false alarms are counted on these.
    config.clean_seeds = (100, 101, 102, 103, 104, 105, 106, 107, 108, 109)
    # Of experiments/expected_curves_bugs.py; each is run with these seeds.
    config.bugs = ("off_by_one_target", "lost_loss_mask", "no_causal_mask", "segments_lost", "positions_not_reset",
                   "wrong_rotary_pairs", "no_attention_scale", "decay_on_norms", "hot_without_warmup",
                   "dropped_microbatch", "stale_optimizer", "repeated_batches")
    if kind == "pretrain":  # its rows have no mask to lose, and Muon decays no norms whatever AdamW's mask says
        config.bugs = tuple(bug for bug in config.bugs if bug not in ("lost_loss_mask", "decay_on_norms"))
    if kind == "policy":
        config.bugs = ("double_advantage_normalisation", "mixed_groups")
    config.bug_seeds = (100, 101, 102)
    return config


def sweep() -> list[dict]:
    """The threshold: false alarms against bugs caught."""
    return [{"sigmas": sigmas} for sigmas in (3.5, 4.0, 4.5, 5.0)]
