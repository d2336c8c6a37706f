"""Tokens to think: answer first against steps first, with two controls, from scratch in minutes.

    python -m experiments.tokens_to_think                                                 # dial problems
    python -m experiments.tokens_to_think --config=configs/tokens_to_think.py:world       # the world's word problems

docs/tokens_to_think.md has what was measured. Written: report.html, report.md, results.json, and kept/ with the runs
that are done, so that the same command goes on after a kill.
"""

from ml_collections import ConfigDict

from configs import lab
from configs.pretrain_tiny import model_fields


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the family of problems, "dial" by default."""
    config = ConfigDict()
    # Of the weights, the problems and their order; one model per arm and seed.
    config.seeds = (0, 1, 2)
    # Some of answer_first, steps_first, filler, deeper; the first two always.
    config.arms = ("answer_first", "steps_first", "filler", "deeper")
    # "dial": digits turned on a dial, short; "world": word problems of the world, which take far longer to learn.
    config.family = arg or "dial"
    # Kinds of problem (experiments/tokens_to_think_problems.py), and how many of each a model is trained on, once each.
    # Most are of one step: the table that both orders must know before steps can matter.
    config.kinds = ("1 step", "2 steps", "3 steps")
    config.problems = (12_000, 3000, 3000)
    # Problems of each kind that it is asked, and where they come from: "test", or "validation" for choosing settings.
    config.asked = 200
    config.part = "test"
    # Problems answered together.
    config.ask_batch = 200
    # What steps first must gain over answer first on problems of two steps.
    config.bar = 0.25

    # Size of the tokenizer, which learns on training problems.
    config.vocab_size = 301
    config.model = model_fields("tiny")
    config.model.update(lab.shape(64, layers=3))
    # Layers of the control that answers first with more computation per token.
    config.deeper_layers = 6

    # Rows of an update and tokens of a row; problems are packed into rows.
    config.batch_size = 4
    config.row_length = 96
    # Highest learning rate, the steps to reach it (then linearly to a tenth), and the pull of matrices to zero.
    config.learning_rate = 3e-3
    config.warmup_steps = 50
    config.weight_decay = 0.1
    if config.family == "world":
        config.kinds = ("one_item", "collection", "two_items", "change", "three_items")
        config.problems, config.vocab_size, config.row_length = 5 * (8000,), 960, 192
    return config


def sweep() -> list[dict]:
    """Layers by training problems: does the gap close with more of either? Asked on the validation part."""
    return [{"model.layers": layers, "deeper_layers": 2 * layers, "part": "validation",
             "problems": tuple(times * count for count in (12_000, 3000, 3000))}
            for layers in (2, 3, 4) for times in (1, 2, 4)]
