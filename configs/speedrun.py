"""The talk in one command: a small world from web pages to a reasoning assistant, and the verdict on each claim.

    pip install -e '.[speedrun]' && python -m experiments.speedrun            # everything, one seed
    python -m experiments.speedrun --config.stages="('crawl','curate','tokenizer','pretrain','recall')"
    python -m experiments.speedrun --config.seed=1 --workdir=runs/speedrun_1

At real size, on one accelerator of 80 GB (not run): a crawl, conversations and tasks of yours (docs/speedrun.md):

    python -m experiments.speedrun --config=configs/speedrun.py:gpu --config.curate.input.folder=crawl \\
        --config.sft.data.sources="('oasst.jsonl','dolly.jsonl')" --config.sft_to_rl.tasks=gsm8k_train.jsonl \\
        --config.evaluate.data=eval --config.quantize.text=wikitext2_valid.txt --workdir=runs/gpu

Every stage is the experiment of its own command with one seed, writes a folder of its own below the run folder and is
made once: the same command goes on where it was stopped or killed, and a changed key makes anew what depends on it.
What the numbers of one seed are worth stands in the reports of the experiments themselves, which run several.
Written: report.html, report.md, results.json, logs/, and a folder a stage.
"""

import os

from ml_collections import ConfigDict

from configs import (
    convert,
    curate_fast,
    distill,
    evaluate,
    interrogate,
    lab,
    look_up,
    policy_gradient,
    pretrain_gpt2,
    quantize,
    reward_hacking,
    reward_model,
    self_play,
    sft,
    sft_to_rl,
    train_tokenizer,
    world_web,
)

STAGES = ("crawl", "curate", "tokenizer", "pretrain", "recall", "evaluate", "sft", "interrogate", "look_up",
          "sft_to_rl", "distill", "self_play", "reward_model", "policy_gradient", "reward_hacking", "quantize",
          "export", "arena")
REAL = ("curate", "tokenizer", "pretrain", "evaluate", "sft", "sft_to_rl", "quantize", "export")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the world's size ("road"), or "gpu" for the road at real size."""
    config = ConfigDict()
    # Of the world, the weights and every draw.
    config.seed = 0
    # Of the world whose documents are the web of this road (docs/world.md).
    config.size = arg if arg not in (None, "gpu") else "road"
    # What is run. A stage needs those that its settings name in braces.
    config.stages = STAGES
    # Stages that also wait for others: their models are found in the cache then, and not made twice.
    config.after = ConfigDict({"interrogate": ("pretrain",), "look_up": ("pretrain",), "recall": ("pretrain",),
                               "distill": ("sft_to_rl",), "policy_gradient": ("reward_model",),
                               "reward_hacking": ("reward_model",), "export": ("pretrain",),
                               "arena": ("pretrain", "sft")})
    # Stages at once, each in a process of its own; 1 runs them here, one after the other, and shows what they print.
    config.processes = 2
    # Pictures of an experiment's report that the road's report shows.
    config.pictures = 1
    # Keys that must be set before anything is run.
    config.required = ()

    # The experiments' own configs, each explained in its own file. In their strings "{curate}" is the folder of that
    # stage, "{pretrain}" the base model's, and "{seed}" and "{size}" are the road's.
    _base(config)
    _assistant(config)
    _practice(config)
    if arg == "gpu":
        _real(config)
    return config


def _base(config: ConfigDict) -> None:
    """From the web to a base model."""
    config.crawl = world_web.get_config()
    config.crawl.pages = 0
    config.curate = curate_fast.get_config()
    config.curate.input.update({"world": "", "folder": "{crawl}", "pattern": "*.warc.gz"})
    config.curate.recipe.url.extra_domains = "{crawl}/blocked_domains.txt"
    # Without its language model (docs/curate.md) that stage is left out, and Gopher's stop words drop other languages.
    config.curate.recipe.language.on = bool(os.environ.get("JAXLLM_LANGUAGE_MODEL"))
    config.curate.tokens.make = False

    config.pretrain = lab.get_config()
    # A vocabulary in which most of the world's values are one token (docs/interrogate.md).
    config.pretrain.data.tokenizer.vocab_size = 2048
    config.tokenizer = train_tokenizer.get_config()
    config.tokenizer.source = "{curate}/latest/documents"
    config.tokenizer.references = ()
    config.tokenizer.vocab_size = config.pretrain.data.tokenizer.vocab_size
    config.tokenizer.pattern = config.pretrain.data.tokenizer.pattern
    config.pretrain.data.sources = ("{curate}/latest/documents",)
    config.pretrain.data.tokenizer.name = "{tokenizer}/tokenizer"
    config.pretrain.data.validation_fraction = 0.04
    # All that the filters keep of this web, twice: after 1.3 times a model of this size recalls hardly anything.
    config.pretrain.steps, config.pretrain.validation_steps, config.pretrain.checkpoint_steps = 5400, 1350, 1350
    # Questions of each band, and tokens of an answer.
    config.recall = ConfigDict({"questions": 150, "max_tokens": 8})
    config.evaluate = evaluate.get_config("{pretrain}/model")
    config.evaluate.tasks = ("world/facts={seed}:{size}",)


def _assistant(config: ConfigDict) -> None:
    """From the base model to an assistant that knows its limits, and what is written for others."""
    config.sft = sft.get_config("{pretrain}")
    config.sft.data.sources = ("world:{seed}:{size}",)
    config.sft.steps = 400
    config.interrogate = interrogate.get_config()
    config.look_up = look_up.get_config()
    for name in ("interrogate", "look_up"):
        config[name].base = config.pretrain
    config.interrogate.world = "{seed}:{size}"
    config.look_up.size, config.look_up.steps = "{size}", 700

    config.quantize = quantize.get_config("{sft}")
    # Of a world with other people: what the assistant was not trained on.
    config.quantize.text = "world:1000:tiny"
    config.quantize.variants, config.quantize.speed_batches = ("int8", "int4"), ()
    config.export = convert.get_config("{sft}")
    # The assistant in these schemes fights as well; so many questions of each band, at this temperature.
    config.arena = ConfigDict({"schemes": ("int8", "int4"), "questions": 60, "temperature": 1.0})


def _practice(config: ConfigDict) -> None:
    """What begins with small models of its own: practice, play and taste; without the longest of their controls."""
    config.sft_to_rl = sft_to_rl.get_config()
    config.sft_to_rl.arms, config.sft_to_rl.rl.steps = ("rl", "more_sft", "coin"), 80
    config.distill = distill.get_config()
    config.self_play = self_play.get_config()
    config.reward_model = reward_model.get_config()
    config.reward_model.members, config.reward_model.counts = 2, (80,)
    config.policy_gradient = policy_gradient.get_config()
    # PPO, as for InstructGPT: the one that pleased the judge at each of three seeds (docs/policy_gradient.md).
    config.policy_gradient.algorithms, config.policy_gradient.control = ("ppo",), "ppo"
    # One run that is pushed on, one from which the stop rule's threshold is taken, one that the judge rewards. A reward
    # model of 300 rankings: 50 steps gamed it at each of four validation seeds, one of 800 not (docs/speedrun.md).
    config.reward_hacking = reward_hacking.get_config()
    config.reward_hacking.proxy = (3, 300)
    config.reward_hacking.update({"validation_seeds": (100,), "controls": 1, "validation_controls": 0,
                                  "other_proxies": (), "other_seeds": 0, "rounds": 0, "round_seeds": 0,
                                  "labels": (64,), "processes": 1})


def _real(config: ConfigDict) -> None:
    """GPT-2 124M on a crawl of the user's own, made an assistant by published conversations, then practice on GSM8K."""
    config.stages, config.processes = REAL, 1  # one after the other: each takes the whole accelerator
    config.required = ("curate.input.folder", "sft.data.sources", "sft_to_rl.tasks", "quantize.text")
    config.curate.input.update({"folder": "", "pattern": ""})
    config.curate.recipe.url.extra_domains, config.curate.recipe.language.on = "", True
    config.tokenizer.vocab_size, config.tokenizer.max_characters = 50_257, 2_000_000_000
    config.pretrain = pretrain_gpt2.get_config("124m")
    config.pretrain.data.sources = ("{curate}/latest/documents",)
    config.pretrain.data.tokenizer.name = "{tokenizer}/tokenizer"
    config.evaluate.tasks = ("core", "hellaswag", "arc_easy", "mmlu", "lambada")
    config.evaluate.limit, config.evaluate.dtype = 0, "bfloat16"
    # Fine-tuning as docs/sft.md has it for published models.
    config.sft.data.sources, config.sft.steps = ("",), 0
    config.sft.batch_size, config.sft.row_length, config.sft.microbatches = 32, 1024, 4
    config.sft.execution.dtype, config.sft.execution.scan, config.sft.loss_chunks = "bfloat16", True, 8
    config.sft.optimizer.learning_rate = 2e-5
    config.sft_to_rl = sft_to_rl.get_config("gsm8k")
    config.sft_to_rl.model = "{sft}"
    config.quantize.text, config.quantize.tokens, config.quantize.length = "", 262_144, 1024


def sweep() -> list[dict]:
    """The whole road for each of three seeds."""
    return [{"seed": seed} for seed in (0, 1, 2)]
