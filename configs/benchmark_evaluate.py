"""Evaluation beside lm-evaluation-harness with its transformers backend: the same weights, items, machine, in turn.

    python -m experiments.benchmark_evaluate --config.model=models/smollm2 --config.data=../shared/data

Expected: log-likelihoods equal to 1e-3 nats or closer, acc and acc_norm equal but for ties, and 2.2 times the tokens/s
on two CPU cores without shots, where contexts are short (docs/evaluate.md): a candidate shares the run of its context,
and contexts have no logits. 6 minutes for 135M parameters.
Needs `pip install -e '.[harness]'`.
Written: report.html, report.md, results.json, the tasks as files of the harness.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model folder."""
    config = ConfigDict()
    # A model folder of ours; its weights are written once more as a Hugging Face folder for the other side.
    config.model = arg or "runs/pretrain_tiny"
    # Folder below which the files of named tasks are looked for.
    config.data = "../shared/data"
    # Names or files, as experiments.evaluate takes them; generations with rounds=0.
    config.tasks = ("arc_easy", "hellaswag")
    # Items of a task at most, drawn, and shots before each (-1: the task's own number).
    config.limit = 100
    config.shots = 0
    # Of the draw of items and shots.
    config.seed = 0
    # Rounds after one that compiles and warms up; the middle one counts. 0 asks for equality alone.
    config.rounds = 3
    # Rows of the other side's batches (its own default is 1), and padded tokens of ours.
    config.batch_rows = 16
    config.batch_tokens = 8192
    # Tokens of padding that one more of our compiled programs must save.
    config.program_tokens = 1024
    return config


def sweep() -> list[dict]:
    """Without and with shots: the longer the context that candidates share, the larger the ratio."""
    return [{"shots": shots} for shots in (0, 5)]
