"""The model that the experiments on the world's taste task start from, and how well it tells jokes.

    python -m experiments.taste --workdir=runs/taste
    python -m experiments.taste --workdir=runs/taste --config.start.model=models/smollm2     # a published chat model

Expected: jokes about things of the validation split, all different, whose mean by the gold judge is about 0.3 standard
deviations below that of the corpus; about a minute of one core a seed. Written besides the report: prompts.jsonl, for
the page that collects rankings. docs/preferences.md has what was measured.
"""

from ml_collections import ConfigDict

from configs import lab
from configs.pretrain_tiny import model_fields


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) is the folder of a published chat model."""
    config = ConfigDict()
    # Of the weights and the conversations; one model each.
    config.seeds = (0, 1, 2)
    # How the model is made, see `start_config`.
    config.start = start_config(arg)
    # Things of the validation split, and jokes about each.
    config.things = 30
    config.samples = 8
    # Of the draws; 1 is the model's own distribution.
    config.temperature = 1.0
    # Rankings of K jokes that the simulated people give for the table of agreement, and how many people.
    config.rankings = 400
    config.completions = 5
    config.people = 3
    # The simulated person, see jaxllm.data.world_taste.Human: noise and biases in standard deviations of gold.
    config.human = ConfigDict({"noise": 0.7, "length_bias": 0.1, "funny_bias": 0.1, "polite_bias": 0.2, "tie": 0.1})
    # Where models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def start_config(model: str | None = None) -> ConfigDict:
    """What `experiments.taste.start` takes; `model` is the folder of a published chat model, None to train one."""
    config = ConfigDict()
    # A model folder whose tokenizer has a chat template; "" trains a model of `shape` from its first weights.
    config.model = model or ""
    # Conversations of one joke that it is fine-tuned on (0 uses a published model as it is), and how often each.
    config.talks = 0 if model else 4000
    config.epochs = 3
    # Size of the tokenizer, which learns on jokes; of no effect with `model`, as is `shape`.
    config.vocab_size = 768
    config.shape = model_fields("tiny")
    config.shape.update(lab.shape(64, layers=3))
    config.shape.max_positions = 128
    # Tokens of a row, in which whole conversations are packed, and rows of an update.
    config.row_length = 128
    config.batch_size = 4
    # The highest, after ten steps of warm-up at most; then linearly to a tenth.
    config.learning_rate = 1e-5 if model else 3e-3
    # Tokens of a joke at most.
    config.max_tokens = 64
    return config


def sweep() -> list[dict]:
    """Conversations by epochs: how much it takes to tell jokes as the corpus does."""
    return [{"start.talks": talks, "start.epochs": epochs} for talks in (1000, 2000, 4000, 8000) for epochs in (1, 3)]
