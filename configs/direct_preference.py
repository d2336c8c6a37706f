"""DPO, IPO and KTO beside each other on a task of taste, judged by the gold judge, with two controls.

    python -m experiments.direct_preference            # the world's jokes, about five minutes of one core

With a published chat model and a file of pairs:

    python -m experiments.direct_preference --config=configs/direct_preference.py:models/smollm2 \\
        --config.data.sources="('dpo_en_demo_300.json.xz',)" --config.row_length=512 --config.max_tokens=128

docs/direct_preference.md has what was measured: after so few updates DPO, IPO and KTO were alike, better than the start
model by 0.24 to 0.30 standard deviations of gold on average, and not told apart from the controls by three seeds.
Written: report.html, report.md, results.json, and kept/ with the runs that are done, so that the same command goes on
after a kill.
"""

from ml_collections import ConfigDict

from configs import taste


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the folder of a published chat model."""
    config = ConfigDict()
    # Of the start model, the people, the order of training and the draws; one of each per seed.
    config.seeds = (0, 1, 2)
    # Some of dpo, ipo, kto, sft (on the chosen replies alone), and of dpo_shuffled, ipo_shuffled, kto_shuffled: the
    # same pairs, each the right way round or the wrong one by chance.
    config.arms = ("dpo", "ipo", "kto", "sft", "dpo_shuffled")
    config.start = taste.start_config(arg)

    config.data = data = ConfigDict()
    # Files of preferences, in any form that jaxllm.data.preferences reads; none: jokes of the start model, ranked by a
    # simulated person.
    data.sources = ()
    # Share of the prompts of files that is held out.
    data.held_out = 0.2
    # Rankings of K jokes about training things; all pairs of a ranking are learned from.
    data.rankings = 160
    data.completions = 4
    # Rankings about held-out things, on which the margin is measured.
    data.held_out_rankings = 38
    # The simulated person, see jaxllm.data.world_taste.Human.
    data.human = ConfigDict({"noise": 0.7, "length_bias": 0.1, "funny_bias": 0.1, "polite_bias": 0.2, "tie": 0.1})

    # Strength of the pull to the start model; IPO's is its tau: margins are drawn to 1 / (2 beta) nats.
    config.beta = 0.1
    # Updates and pairs of an update, alike for every arm.
    config.steps = 50
    config.batch_size = 16
    # Most tokens of a prompt with a reply.
    config.row_length = 64
    # Highest learning rate of each loss, after ten steps of warm-up; then linearly to a tenth.
    config.learning_rate = ConfigDict({"dpo": 4e-4, "ipo": 4e-4, "kto": 4e-4, "sft": 4e-4})
    # Pieces of a batch whose gradients are summed, and pieces of a row whose logits stand in memory at a time.
    config.microbatches = 1
    config.logit_chunks = 1

    # How often a policy is looked at on its way, evenly; the last look is the result.
    config.looks = 2
    # Held-out prompts that each look draws replies to (things of `part`), replies to each, and their longest length.
    config.judged = 38
    config.judged_samples = 6
    config.max_tokens = 48
    # "test", or "validation" for choosing settings.
    config.part = "test"
    # Where start models are kept between runs and experiments.
    config.cache = "~/.cache/jaxllm/lab"
    return config


def sweep() -> list[dict]:
    """The pull to the start model by the learning rate, judged on validation things."""
    return [{"beta": beta, "part": "validation", "arms": ("dpo", "ipo", "kto"),
             "learning_rate": dict.fromkeys(("dpo", "ipo", "kto", "sft"), rate)}
            for beta in (0.03, 0.1, 0.3) for rate in (1e-4, 4e-4, 1.6e-3)]
