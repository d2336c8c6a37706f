"""Distillation in miniature: six ways to improve a small student, at equal FLOPs, and what each comes to.

    python -m experiments.distill                                          # practice problems
    python -m experiments.distill --config.part=validation --config.seeds="(100,)"     # for choosing settings

With published models, a file of tasks and the engine (docs/distill.md):

    python -m experiments.distill --config=configs/distill.py:gsm8k --config.files.teacher=models/qwen2.5-1.5b \\
        --config.files.student=models/qwen2.5-0.5b --config.files.tasks=gsm8k_train.jsonl.xz

Expected: traces that are kept if right take the student from .37 to about .91, answers alone down to .21, in about six
minutes of one core's time beside the start models (docs/distill.md). Written: report.html, report.md, results.json,
traces-SEED.jsonl (the traces that were kept, which `experiments.sft` reads), and kept/ with the arms that are done: the
same command goes on after a kill.
"""

from ml_collections import ConfigDict

from configs import lab, policy_gradient, sft_to_rl


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is "practice" (default) or "gsm8k"."""
    config = ConfigDict()
    # Of the models, the problems and all draws.
    config.seeds = (4, 5, 6)
    # Some of traces, answers, shuffled, logits, on_policy, rl; traces always.
    config.arms = ("traces", "answers", "shuffled", "logits", "on_policy", "rl")
    # Held-out problems come from "test", or from "validation" for choosing settings; the temperature of the replies.
    config.part = "test"
    config.temperature = 1.0
    # How often each arm is looked at, evenly over what it spends; the last look is the result.
    config.looks = 2
    # Where models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"

    _models(config)
    _lessons(config)

    # RL on the student, at a constant rate as all arms; its FLOPs are what each of them may spend. Sampler, execution,
    # logit_chunks, microbatches and optimizer (but for the rate) are those of all arms.
    config.rl = policy_gradient.without_folder(sft_to_rl.run_config().rl)
    config.rl.steps, config.rl.optimizer.final_fraction = 40, 1.0
    if arg == "gsm8k":
        gsm8k(config)
    return config


def _models(config: ConfigDict) -> None:
    # The teacher: the model of experiments.sft_to_rl after RL, on whose problems all arms learn (configs/sft_to_rl.py).
    config.teacher = sft_to_rl.study_config()
    for name in ("seeds", "cache", "fractions"):
        del config.teacher[name]
    # The student's start, where it differs from the teacher's own: it is smaller, and has read less.
    config.student = ConfigDict({"shape": lab.shape(48, layers=2), "documents": (6000, 6000, 5000), "lines": 1})

    config.files = ConfigDict()
    # Instead: folders of chat models of one tokenizer, and a file of tasks (docs/rewards.md); all three or none.
    config.files.teacher = ""
    config.files.student = ""
    config.files.tasks = ""
    # Put behind every problem; the share of problems held out; how many of each side are used (0: all).
    config.files.instruction = ""
    config.files.held_out = 0.1
    config.files.train = 0
    config.files.asked = 0


def _lessons(config: ConfigDict) -> None:
    # Solutions that the teacher draws of each training problem, and how many different right ones are kept at most.
    config.traces = ConfigDict()
    config.traces.samples = 2
    config.traces.keep = 2
    config.traces.temperature = 1.0
    # What the arm "answers" is shown in place of a trace.
    config.answer = "Answer:{}."
    # Rows of an update that learns from traces, and tokens of a row, in which whole conversations are packed.
    config.batch_size = 8
    config.row_length = 96
    # Learning rates, reached after rl.optimizer.warmup_steps and then kept: of text, of logits on it, and on-policy.
    config.rates = ConfigDict({"text": 1e-3, "logits": 1e-3, "on_policy": 5e-4})

    # The teacher's logits on its traces: divergence (forward, reverse or jsd, with beta between them), temperature of
    # both distributions, and how many of the likeliest tokens are stored of each place (0: all, anew each time).
    config.logits = ConfigDict({"divergence": "forward", "beta": 0.5, "temperature": 1.0, "top_k": 16})
    # Its logits on what the student writes: the same, and problems and replies to each in an update.
    config.on_policy = ConfigDict({"divergence": "reverse", "beta": 0.5, "temperature": 1.0, "prompts": 32,
                                   "samples": 2})


def gsm8k(config: ConfigDict) -> None:
    """Published models: bfloat16, the engine, whole replies, and rates that fit 10^8 weights and more."""
    config.seeds = (0,)
    config.arms = ("traces", "answers", "logits", "on_policy", "rl")
    config.temperature = 0.6
    config.files.instruction = sft_to_rl.get_config("gsm8k").instruction
    config.files.asked = 500
    config.traces.update({"samples": 4, "keep": 4, "temperature": 0.8})
    config.answer = "#### {}"
    config.batch_size, config.row_length = 32, 1024
    config.rates = ConfigDict({"text": 1e-5, "logits": 1e-5, "on_policy": 5e-6})
    config.logits.top_k = 64
    config.on_policy.update({"prompts": 32, "samples": 1})
    config.rl = policy_gradient.without_folder(sft_to_rl.get_config("gsm8k").rl)


def sweep() -> list[dict]:
    """What is stored of the teacher and how, and the direction on-policy, on validation problems."""
    return [{"part": "validation", "arms": ("traces", "logits"), "logits.top_k": k, "logits.divergence": kind}
            for k in (1, 4, 16, 0) for kind in ("forward", "reverse")] + [
        {"part": "validation", "arms": ("traces", "on_policy"), "on_policy.divergence": kind, "rates.on_policy": rate}
        for kind in ("forward", "jsd", "reverse") for rate in (2e-4, 5e-4, 1e-3)]
