"""Policy gradient on human taste: rankings -> reward model -> RL -> judged by the gold judge, with controls.

    python -m experiments.policy_gradient                                                   # the whole study
    python -m experiments.policy_gradient --config.seeds="(0,)" --config.algorithms="('ppo',)"

At real size, a chat model's folder, conversations to reply to, and a saved reward model (docs/policy_gradient.md):

    python -m experiments.policy_gradient --config=configs/policy_gradient.py:real --config.model=models/smollm2 \\
        --config.prompts=dolly.jsonl --config.reward=runs/reward/model

docs/policy_gradient.md has what was measured. Written: report.html, report.md, results.json, and a folder per run with
index.html, which shows the run while it goes. A run that was killed goes on where it was.
"""

from ml_collections import ConfigDict, config_dict

from configs import reward_model, taste


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is "study" (default) or "real"."""
    config = ConfigDict()
    # Of the start model, the simulated people, the reward model and the draws; one of each per seed.
    config.seeds = (0, 1, 2)
    # Compared at equal samples; rows of jaxllm.rl.policy_settings.ALGORITHMS.
    config.algorithms = ("ppo", "reinforce", "rloo", "grpo")
    # The one that is also run against a reward model of shuffled labels.
    config.control = "grpo"
    # Held-out things that the gold judge is asked about, replies to each, and where they come from: "test", or
    # "validation" for choosing settings.
    config.judged = 32
    config.judged_samples = 8
    config.part = "test"
    # Replies to each held-out thing among which the reward model picks for best-of-n.
    config.best_of = 64
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"

    # A chat model's folder, and a file of conversations whose first user turns are replied to; "" is the study.
    config.model = ""
    config.prompts = ""
    # Folder of a saved reward model, which a run at real size is rewarded by.
    config.reward = ""
    # Longest prompt that is taken, tokens.
    config.max_prompt_tokens = 256

    config.start = taste.start_config()
    config.people = people()
    config.reward_model = reward_model.reward_config()
    config.reward_model.epochs = 1
    config.rl = policy_config()
    del config.rl["algorithm"]  # each of config.algorithms in turn
    # So far that the KL is about a nat: further on, this reward model's best of n is no better by the gold judge.
    config.rl.steps = 20
    config.rl.optimizer.learning_rate = 3e-4
    if arg == "real":
        real(config)
    return config


def people() -> ConfigDict:
    """Whose rankings the reward model learns from; how it learns is configs/reward_model.py's."""
    config = ConfigDict()
    # Rankings to learn from, rankings that give the reward its scale, and replies of the start model in each.
    config.rankings = 800
    config.validation = 50
    config.completions = 5
    # The simulated person, see jaxllm.data.world_taste.Human.
    config.human = taste.get_config().human
    return config


def policy_config() -> ConfigDict:
    """What `experiments.improve.improve` reads: one run of policy gradient."""
    config = ConfigDict()
    # ppo, reinforce, rloo, grpo, dr_grpo, dapo, gspo, cispo or reinforce++: rows of
    # jaxllm.rl.policy_settings.ALGORITHMS.
    config.algorithm = "grpo"
    # Rollouts, and of each: prompts, and replies to a prompt.
    config.steps = 80
    config.prompts = 8
    config.samples = 8
    _policy(config)
    _sampler(config)
    _tools(config)

    config.optimizer = ConfigDict()
    # As in configs/pretrain_tiny.py.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_steps = 5
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 1.0
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.execution = ConfigDict({"dtype": "float32", "scan": False, "remat": "none", "attention": "auto"})
    # Pieces of a row whose logits stand in memory at a time, and pieces of a minibatch whose gradients are summed.
    config.logit_chunks = 1
    config.microbatches = 1
    # Devices along (data, fsdp, tensor); -1 is the rest. (1, 1, 1) takes the first device, whatever others there are.
    config.mesh = (1, 1, 1)

    config.guard = ConfigDict()
    # Beyond what the run is stopped: KL to the start, nats a reply (0: off); entropy of a token, as a share of that at
    # the first step (0: off); share of replies cut off (1: off); and for how many steps in a row.
    config.guard.kl = 50.0
    config.guard.entropy = 0.05
    config.guard.truncated = 0.9
    config.guard.patience = 3

    # Steps between progress lines.
    config.log_steps = 20
    # Of a run with a folder: steps between checkpoints (0: only the last), and how many are kept.
    config.checkpoint_steps = 20
    config.keep_checkpoints = 2
    # Seconds between two looks of the page that shows the run.
    config.page_seconds = 2.0
    return config


def without_folder(config: ConfigDict) -> ConfigDict:
    """A config of one run, less the keys of which a run without a folder has no use."""
    for key in ("checkpoint_steps", "keep_checkpoints", "page_seconds"):
        del config[key]
    return config


def _policy(config: ConfigDict) -> None:
    """Fields of jaxllm.rl.policy_settings.PolicySettings; None is the algorithm's own."""
    config.policy = policy = ConfigDict()
    # Baseline (critic, grpo, dr_grpo, rloo, mean, none, reinforce++, reinforce++_baseline, returns) and whether
    # advantages are whitened.
    policy.baseline = config_dict.placeholder(str)
    policy.whiten = config_dict.placeholder(bool)
    # clip, cispo or reinforce; ratio of a token, or of the whole reply (sequence, product); how far it may go.
    policy.objective = config_dict.placeholder(str)
    policy.ratio = config_dict.placeholder(str)
    policy.clip_low = config_dict.placeholder(float)
    policy.clip_high = config_dict.placeholder(float)
    policy.dual_clip = config_dict.placeholder(float)
    # What the loss is divided by: token, sequence or constant.
    policy.average = config_dict.placeholder(str)
    # Times that a rollout is gone over, and updates of each.
    policy.epochs = config_dict.placeholder(int)
    policy.minibatches = config_dict.placeholder(int)
    # KL to the start model: in the loss, in the reward, or none; its estimator (k1, k2, k3) and weight, which adapts
    # towards kl_target (nats a reply) where that is above 0.
    policy.kl_in = config_dict.placeholder(str)
    policy.kl_kind = config_dict.placeholder(str)
    policy.kl_coefficient = config_dict.placeholder(float)
    policy.kl_target = config_dict.placeholder(float)
    policy.kl_horizon = config_dict.placeholder(int)
    # Of the critic: shared or own trunk, weight and clip of its loss, gamma and lambda of GAE.
    policy.critic = config_dict.placeholder(str)
    policy.value_coefficient = config_dict.placeholder(float)
    policy.value_clip = config_dict.placeholder(float)
    policy.discount = config_dict.placeholder(float)
    policy.gae_decay = config_dict.placeholder(float)
    # Weight of the entropy in the objective.
    policy.entropy_coefficient = config_dict.placeholder(float)
    # Truncated importance weights for a sampler that is not the trainer: none, token or sequence; and their cap.
    policy.importance = config_dict.placeholder(str)
    policy.importance_cap = config_dict.placeholder(float)
    # Leave replies that were cut off out of the loss.
    policy.mask_truncated = config_dict.placeholder(bool)
    # DAPO's: rounds of further prompts at most, drawn for groups whose rewards are all equal; and the last share of
    # sampler.max_tokens over which the reward of a long reply falls by up to 1.
    policy.resample = config_dict.placeholder(int)
    policy.overlong = config_dict.placeholder(float)


def _sampler(config: ConfigDict) -> None:
    config.sampler = sampler = ConfigDict()
    # generate (equal batches in one compiled loop) or engine (continuous batching, for replies of unequal length).
    sampler.by = "generate"
    # Longest reply.
    sampler.max_tokens = 56
    # Divides the logits, for the sampler and the trainer alike; filters are the sampler's alone, and so a gap.
    sampler.temperature = 1.0
    sampler.top_k = 0
    sampler.top_p = 1.0
    # Of the sampler: dtype of activations, and its weights: same, bfloat16, int8, int8_dynamic or int4.
    sampler.dtype = "float32"
    sampler.weights = "same"
    # Slots of the engine, or rows that generate holds at once; 0 is all of a rollout.
    sampler.slots = 0


def _tools(config: ConfigDict) -> None:
    config.tools = tools = ConfigDict()
    # Tools that the policy may call while it is sampled, of calculator and python; () is plain replies. What a tool
    # answers is not learned from.
    tools.names = ()
    # Calls in a conversation at most; sampler.max_tokens bounds each of its replies.
    tools.calls = 2
    # Longest conversation with prompt, calls and results, tokens; 0 is as long as the model's positions.
    tools.max_length = 0
    # Put the descriptions of the tools into the system message; a model that was trained on them may not need them.
    tools.describe = True


def real(config: ConfigDict) -> None:
    """A published chat model: bfloat16, layers by scan, the engine, and a rate that fits 10^8 weights and more."""
    config.seeds = (0,)
    config.algorithms = ("grpo",)
    config.rl.steps = 200
    config.rl.optimizer.learning_rate = 1e-6
    config.rl.execution.update({"dtype": "bfloat16", "scan": True, "remat": "full"})
    config.rl.sampler.update({"by": "engine", "dtype": "bfloat16", "max_tokens": 256, "slots": 64})
    config.rl.policy.importance = "token"
    config.rl.logit_chunks = 8
    config.rl.microbatches = 4
    config.rl.mesh = (-1, 1, 1)
    config.rl.log_steps = 1


def sweep() -> list[dict]:
    """The weight of the KL by the learning rate, on validation things."""
    return [{"rl.policy.kl_coefficient": kl, "rl.optimizer.learning_rate": rate, "part": "validation",
             "algorithms": ("grpo",)} for kl in (0.0, 0.03, 0.1, 0.3) for rate in (7.5e-5, 1.5e-4, 3e-4)]
