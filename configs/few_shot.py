"""In-context learning: does a base model use the examples shown, and how many does it take?

    python -m experiments.few_shot                                                  # small models, trained here
    python -m experiments.few_shot --config.model=lab                               # the laboratory's base models
    python -m experiments.few_shot --config.model=models/smollm2 --config.separator=: --config.prompts=20

Pairs "key: value" under a mapping that is drawn anew for every text, so that weights cannot know it. Controls: the same
prompts with random labels, a model trained on the same texts with their pairs broken, and one that was never trained.
Expected, models trained here: of shift 0.94 or more is right from one example on, 0.2 with random labels; look-up
and classes are not learnt (docs/few_shot.md).
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) names the model."""
    config = ConfigDict()
    # "": small models are trained here on texts of pairs; "lab": the laboratory's base, trained once per seed and kept;
    # or a published base model's folder, which gets two real tasks too.
    config.model = arg or ""
    # Of the texts, the weights and the prompts; of a published model, of the prompts alone.
    config.seeds = (0, 1, 2)
    # Examples shown before the question: 0 to 16.
    config.shots = (0, 1, 2, 4, 8, 16)
    # Questions for each task, number of examples and seed.
    config.prompts = 100
    # Between key and value, before a space. Without one a value stands right behind its key, which small models learn
    # soonest; published models expect ":".
    config.separator = ""
    # Prompts run together.
    config.batch = 100

    # Of the models trained here: updates, each on batch_size rows of row_length tokens.
    config.train = ConfigDict()
    config.train.steps = 3000
    config.train.batch_size = 4
    config.train.row_length = 128
    config.train.warmup_steps = 50
    config.train.learning_rate = 3e-3
    config.train.vocab_size = 600
    config.train.update(lab.shape(64, layers=3))

    # The laboratory's base: a config of experiments.pretrain.
    config.base = lab.get_config()
    return config


def sweep() -> list[dict]:
    """When does in-context learning appear? Updates by layers."""
    return [{"train.steps": steps, "train.layers": layers} for steps in (500, 1500, 5000) for layers in (1, 2, 3)]
