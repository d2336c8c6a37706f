"""Policy gradients beside TRL's GRPOTrainer and RLOOTrainer: steps a second, same model, prompts, samples and machine.

    pip install -e '.[peers]'           # torch, transformers, trl; without them our side alone is measured
    python -m experiments.benchmark_policy --workdir=runs/benchmark_policy

A step draws the replies of a rollout, scores them under the policy and the start model, and takes one update. The
reward is the length of the text, so what is measured is all but the reward model. TRL 1.16 has no PPO trainer: ours is
measured alone. Expected: docs/policy_gradient.md; about 10 minutes on 2 CPU cores. Written: report.html, report.md,
results.json.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config."""
    del arg
    config = ConfigDict()
    # A Llama with random weights: width, layers, heads, width of the MLP; and the size of its tokenizer, which is
    # trained on jokes.
    config.dim = 64
    config.layers = 3
    config.heads = 4
    config.mlp_dim = 192
    config.vocab_size = 768
    # Of a step: prompts, replies to each, and tokens of a reply, which random weights seldom end before.
    config.prompts = 8
    config.samples = 8
    config.max_tokens = 48
    # Our ways: an algorithm, by generate or by the engine.
    config.ours = ("grpo, generate", "grpo, engine", "rloo, generate", "ppo, generate")
    # TRL's: grpo or rloo, "as it comes" (gradient checkpointing) or without.
    config.peers = ("grpo, as it comes", "grpo", "rloo")
    # Steps of a measurement, and times that each rival is measured, in turn.
    config.steps = 5
    config.rounds = 5
    # Threads that PyTorch computes with; 0 = the physical cores, which JAX takes by itself.
    config.threads = 0
    return config


def sweep() -> list[dict]:
    """Widths: the larger the model, the less the host counts."""
    return [{"dim": dim, "mlp_dim": 3 * dim} for dim in (64, 128, 256)]
