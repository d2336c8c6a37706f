"""A reward model of human taste: how often it agrees, how sure it may be, and what it falls for.

    python -m experiments.reward_model --workdir=runs/reward_model                            # jokes, minutes on a CPU
    python -m experiments.reward_model --config=configs/reward_model.py:FILE --config.start.model=models/smollm2 \
        --workdir=runs/reward_model_hh                                   # a file of preferences and a published model

FILE is one of `jaxllm.data.preferences.open_preferences`, such as a part of hh-rlhf.

Expected: two thirds of held-out pairs of jokes in the person's order, where the noise-free judge has 0.83 and length
alone 0.62; 14 CPU-seconds for a model of 320 rankings, four such and three smaller ones a seed. hh-rlhf with
SmolLM2-135M, the head alone: 0.61; most of the time goes into the states of the frozen model. docs/reward_model.md has
what was measured.
"""

from ml_collections import ConfigDict

from configs import lab, taste
from configs.pretrain_tiny import model_fields


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is a file of preferences, or nothing for the world's jokes."""
    config = ConfigDict()
    # Of the start model, the rankings, the order of training and the heads; with a file, of the division into folds.
    config.seeds = (0, 1, 2)
    # The model that is judged and that the reward model starts from, see configs/taste.py.
    config.start = taste.start_config("models/smollm2" if arg else None)
    # A file of preferences; "" has simulated people rank jokes of the start model.
    config.preferences = arg or ""
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    # How a reward model is made, see `reward_config`.
    config.reward = reward_config(arg)

    # Jokes: rankings for training, for temperature and scale, and for the report; completions of each; about things of
    # the train, validation and test split.
    config.rankings, config.validation, config.test = 320, 100, 300
    config.completions = 4
    # Of the start model's draws.
    config.temperature = 1.0
    # The simulated person, see jaxllm.data.world_taste.Human.
    config.human = taste.get_config().human
    # Members of an ensemble, which differ in head and order; the first is the reward model of all other tables.
    config.members = 3
    # Numbers of rankings below the full one, for the learning curve.
    config.counts = (40, 80, 160)
    # Also one model by the other loss, Plackett-Luce for Bradley-Terry.
    config.other_loss = False

    # A file: folds by prompt. Each is held out once, the next one chooses l2, layer and temperature.
    config.folds = 5
    # Rankings used, the first of them; 0 is all.
    config.limit = 0
    # Pulls of the unigram judge's weights to zero to choose from on validation.
    config.unigram_l2s = (1e-4, 1e-3, 1e-2, 1e-1)
    return config


def reward_config(arg: str | None = None) -> ConfigDict:
    """What `experiments.reward_model.fit` takes; `arg` as in `get_config`."""
    config = ConfigDict()
    # "start": the weights of the start model; "random": new weights of `shape`.
    config.begin = "start"
    # The shape of "random".
    config.shape = model_fields("tiny")
    config.shape.update(lab.shape(64, layers=3))
    config.shape.max_positions = 128
    # A score is made of states: there are no logits, and no head for them.
    del config.shape["logit_softcap"], config.shape["tied_embedding"]
    # "all" weights; "1", "2", ...: so many of the last blocks with the final norm and the head; or the "head" alone,
    # over states that are computed once. A published model of 135M on a CPU: the head; on a GPU: all.
    config.trained = "head" if arg else "all"
    # "head": blocks of the models to choose from on validation, and pulls to zero of the head's weights.
    config.layers = (10, 15) if arg else ()
    config.head_l2s = (0.1, 0.3, 1.0, 3.0, 10.0)
    # The chat format of the rows; "" is the tokenizer's own. SmolLM2's own puts a system message before every prompt.
    config.template = "chatml" if arg else ""
    # "bradley_terry": all pairs of a ranking in one batch element; "plackett_luce": its whole order.
    config.loss = "bradley_terry"
    # Score by which the better is to lead per tier (Bradley-Terry), and the pull of scores to zero.
    config.margin, config.centring = 0.0, 0.01
    # Most tokens of a row; prompts lose their first turns where the row is longer.
    config.row_length = 128
    # Rankings of an update; times that each is seen; updates at least, where there are few.
    config.batch_size, config.epochs, config.least_steps = 16, 3, 20
    # The highest, after the warm-up; then linearly to a tenth. And the pull of matrices to zero.
    config.learning_rate = 1e-5 if arg else 5e-4
    config.warmup_steps, config.weight_decay = 5, 0.01
    # Devices over data, fsdp and tensor; (1, 1, 1) is one. Pieces of a batch whose gradients are summed.
    config.mesh, config.microbatches = (1, 1, 1), 1
    # dtype, scan over layers, rematerialisation and attention of training.
    config.execution = ConfigDict({"dtype": "float32", "scan": bool(arg), "remat": "full" if arg else "none",
                                   "attention": "auto"})
    return config


def sweep() -> list[dict]:
    """Loss by rate by epochs, on the jokes."""
    return [{"reward.loss": loss, "reward.learning_rate": rate, "reward.epochs": epochs}
            for loss in ("bradley_terry", "plackett_luce") for rate in (2e-4, 5e-4, 1e-3) for epochs in (1, 3)]
