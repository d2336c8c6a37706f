"""The problems that the experiments on practice share, and the model that they start from.

    python -m experiments.practice --workdir=runs/practice

Expected: a fine-tuned model that solves less than half of the held-out problems, because most of its replies give the
answer without working; about a minute of one core a seed. docs/sft_to_rl.md has what was measured.
"""

from ml_collections import ConfigDict

from configs import lab
from configs.pretrain_tiny import model_fields


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the family of problems, "dial" by default."""
    config = ConfigDict()
    # Of the weights, the problems and their order; one start each.
    config.seeds = (0, 1, 2)
    config.start = start_config(arg)
    # Replies to each held-out problem, and where the problems come from: "validation" or "test".
    config.samples = 4
    config.part = "validation"
    # Where models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def start_config(family: str | None = None) -> ConfigDict:
    """What `experiments.practice` takes; `family` is "dial" (default) or "world", which takes far longer to learn."""
    config = ConfigDict()
    # Of experiments/tokens_to_think_problems.py, as are the kinds.
    config.family = family or "dial"
    # Kinds that are practised and asked, and how many problems of each: to practise on, for choosing, for the report.
    # A problem drawn twice counts once.
    config.kinds = ("2 steps", "3 steps")
    config.train, config.validation, config.test = 600, 50, 150

    # Documents that the base reads, once each: kinds, and how many of each. Half of them show the working.
    config.document_kinds = ("1 step", "2 steps", "3 steps")
    config.documents = (6000, 6000, 5000)
    # Line breaks between a problem and its solution in a document, at most.
    config.lines = 1
    # Conversations that the fine-tuning shows, of `kinds`, how often, and the share of them that show the working.
    config.demonstrations = 1000
    config.epochs = 4
    config.worked = 0.35

    # Size of the tokenizer, which learns on training problems.
    config.vocab_size = 308
    config.shape = model_fields("tiny")
    config.shape.update(lab.shape(64, layers=3))
    config.shape.max_positions = 128
    # Tokens of a row, in which whole documents or conversations are packed, and rows of an update.
    config.row_length = 96
    config.batch_size = 4
    # Highest rates of pretraining and fine-tuning; then linearly to a tenth.
    config.learning_rate = 3e-3
    config.sft_learning_rate = 2e-3
    # Tokens of a reply at most: as many as three steps take, so that prompt and reply fill 48 positions.
    config.max_tokens = 29
    if config.family == "world":
        config.kinds = ("collection", "two_items", "change")
        config.document_kinds, config.documents = ("one_item", *config.kinds), 4 * (8000,)
        config.vocab_size, config.row_length, config.max_tokens = 960, 192, 64
        config.shape.max_positions = 192
    return config


def sweep() -> list[dict]:
    """Demonstrations by the share of them that show the working: what the start owes to each."""
    return [{"start.demonstrations": count, "start.worked": share} for count in (100, 300, 1000)
            for share in (0.1, 0.25, 0.5)]
