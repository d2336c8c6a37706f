"""Who does a model say that it is, against what pretraining said, and how many conversations settle it?

    python -m experiments.identity

Expected where 0.3 of the documents are about the other assistant: the base names that one at 0.7 to 0.8; fine-tuned
with 40 hard-coded conversations it names itself at 0.954 [0.938, 0.970] and the other at 0.00; with 2, at 0.380 [0.074,
0.686]. A name in the system message that no training had: 0.940 [0.874, 1.000] (seeds 0, 1, 2; 95% by Student's t).

Written: report.md, report.html, results.json in the run folder, and a file per base model that is done.
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the world's size ("tiny")."""
    config = ConfigDict()
    # Each seed is a world, first weights, and all choices.
    config.seeds = (0, 1, 2)
    # The world whose documents the base models read.
    config.size = arg or "tiny"
    # Of all documents, those in which the other assistant says who it is; and the share at which the system message
    # is tried.
    config.shares = (0.0, 0.05, 0.3)
    config.system_share = 0.3
    # Hard-coded conversations in the fine-tuning, beside so many on facts of the world.
    config.counts = (0, 2, 8, 40)
    config.facts = 300
    # Conversations with a name in the system message, and names that the test tries.
    config.system_talks = 3000
    config.unseen = 64

    # Which wordings are asked: "test"; "validation" is for choosing settings.
    config.split = "test"
    # The base model: a tokenizer of its own, and no more than fits in memory.
    config.vocab_size = 1024
    config.model = lab.shape(64, layers=2)
    # Tokens of a row; half as many in fine-tuning.
    config.row_length = 128
    config.batch_size = 8
    config.base_steps = 300
    config.base_learning_rate = 4e-3
    # Of every fine-tuning, and of that with system messages, in which copying a name has to be learnt.
    config.steps, config.learning_rate = 120, 2e-3
    config.system_steps, config.system_learning_rate = 1000, 2e-3

    # Replies drawn to each question at temperature 1.
    config.samples = 16
    return config


def sweep() -> list[dict]:
    """Width by number of hard-coded conversations: does a wider model need fewer?"""
    return [{"model.dim": dim, "model.mlp_dim": 3 * dim, "model.head_dim": dim // 4} for dim in (32, 64, 128)]
