"""9.11 and 9.9: version text in the training data against comparing decimals, from scratch in minutes.

    python -m experiments.decimals
    python -m experiments.decimals --config.published=runs/smollm2     # asks a published chat model too

docs/decimals.md has what was measured. Written: report.html, report.md, results.json, and kept/ with the models that
are done, so that the same command goes on after a kill.
"""

from ml_collections import ConfigDict

from configs import lab
from configs.pretrain_tiny import model_fields


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is not used."""
    del arg
    config = ConfigDict()
    # Of the weights, the text and the pairs asked; one model per arm, share and seed.
    config.seeds = (0, 1, 2)
    # What the version text is: questions (of the same form), lists (9.3, 9.9, 9.14), agreeing (the control: questions
    # about versions on which both orders agree).
    config.arms = ("questions", "lists", "agreeing")
    # Its shares of the tokens trained on, added to the same amount of decimals text; 0 is measured besides, once for
    # all arms.
    config.shares = (0.25, 0.5, 0.75)
    # Share of the lines, of either text, that begin with "Decimals." or "Versions.".
    config.told = 0.5
    # Pairs asked of each kind, and where they come from: "test", or "validation" for choosing settings.
    config.asked = 200
    config.part = "test"

    # A model folder with a chat format (experiments.convert makes one of a published model) that is asked too, and
    # pairs of each kind for it; "": none.
    config.published = ""
    config.published_asked = 20

    # Size of the tokenizer, which learns on the questions.
    config.vocab_size = 299
    config.model = model_fields("tiny")
    config.model.update(lab.shape(48, layers=2))

    # Updates on decimals text, rows of an update and tokens of a row. A model with a share s of version text has
    # steps / (1 - s) updates: as much decimals text, and the version text besides.
    config.steps = 300
    config.batch_size = 8
    config.row_length = 96
    # Highest learning rate, the steps to reach it (then linearly to a tenth), and the pull of matrices to zero.
    config.learning_rate = 6e-3
    config.warmup_steps = 50
    config.weight_decay = 0.1
    return config


def sweep() -> list[dict]:
    """Steps by the share of lines that tell what they are, asked on the validation part."""
    return [{"steps": steps, "told": told, "part": "validation"}
            for steps in (150, 300, 600) for told in (0.0, 0.25, 0.5)]
