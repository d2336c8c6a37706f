"""The small road in one command: world, tokenizer, pretraining, fine-tuning, interrogation, search, taste, RL, play.

    python -m experiments.speedrun                                        # everything, one seed
    python -m experiments.speedrun --config.stages="('world','tokenizer','pretrain','sft')"
    python -m experiments.speedrun --config.seed=1 --workdir=runs/speedrun_1

Every stage is the experiment of its own command with one seed, writes its own folder below the run folder and is made
once: the same command goes on where it was stopped or killed. What the numbers of one seed are worth stands in the
reports of the experiments themselves, which run several.
Written: report.html, report.md, results.json, and a folder a stage.
"""

from ml_collections import ConfigDict

from configs import (
    interrogate,
    lab,
    look_up,
    policy_gradient,
    reward_model,
    self_play,
    sft,
    sft_to_rl,
    train_tokenizer,
)

STAGES = ("world", "tokenizer", "pretrain", "sft", "interrogate", "look_up", "reward_model", "policy_gradient",
          "sft_to_rl", "self_play")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the world's size ("lab")."""
    size = arg or "lab"
    config = ConfigDict()
    # Of the world, the weights and every draw.
    config.seed = 0
    # What is run, in this order; a stage needs those before it (interrogate and look_up do without sft, and those
    # from reward_model on, which begin with a small model of their own, without any).
    config.stages = STAGES
    # Of the world whose documents are the web of this road (docs/world.md).
    config.size = size

    # The experiments' own configs, each explained in its own file. Seeds, sources, tokenizer and models are filled in.
    config.tokenizer = train_tokenizer.get_config()
    config.tokenizer.references = ()
    config.pretrain = lab.get_config(size)
    config.tokenizer.vocab_size = config.pretrain.data.tokenizer.vocab_size
    config.tokenizer.pattern = config.pretrain.data.tokenizer.pattern
    config.sft = sft.get_config()
    config.interrogate = interrogate.get_config()
    config.look_up = look_up.get_config(size)
    config.reward_model = reward_model.get_config()
    config.policy_gradient = policy_gradient.get_config()
    config.policy_gradient.algorithms = ("grpo",)
    config.sft_to_rl = sft_to_rl.get_config()
    config.self_play = self_play.get_config()
    return config


def sweep() -> list[dict]:
    """The whole road for each of three seeds."""
    return [{"seed": seed} for seed in (0, 1, 2)]
