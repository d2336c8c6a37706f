"""The second mitigation, measured: right answers about people a model never met, with a search and without.

    python -m experiments.look_up                                                   # the small world, three seeds
    python -m experiments.look_up --config.model=models/smollm2 --config.row_length=512 --config.batch_size=16

Expected, mean of seeds 0, 1, 2 [95% by Student's t]: right about people whom no document tells 0.967 [0.911, 1.000]
with the search, 0.038 [0.000, 0.094] without, 0.982 [0.935, 1.000] with the page in the context, 0.033 [0.000, 0.077]
with a search whose pages are wrong. 10 minutes on one core of a Xeon at 2.5 GHz, beside the base models.

Written: report.md, report.html, results.json in the run folder, and a file per seed that is done.
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` is the world's size ("lab")."""
    config = ConfigDict()
    # Each seed is a world, a base model of it, and a fine-tuning.
    config.seeds = (0, 1, 2)
    # The world's size; the base model is trained on "world:{seed}:SIZE", or on files of its documents.
    config.size = arg or "lab"
    # The base model (configs/lab.py), trained once for each seed and kept in its data.cache.
    config.base = lab.get_config(config.size)
    # A model folder or run folder to fine-tune instead of it (a published model: docs/look_up.md); "" is the base.
    config.model = ""
    # How the pages of the search are written: "card" is the shortest, "encyclopedia" prose.
    config.page_style = "card"

    # Conversations to train on: with a search about invented people, about people who are told once; with the page in
    # the system message; from memory although it could search (people told often); from memory without a tool.
    config.talks = ConfigDict()
    config.talks.search_invented = 3000
    config.talks.search_once = 600
    config.talks.page = 1200
    config.talks.known = 600
    config.talks.plain = 800
    # Updates, rows of each, tokens of a row, and the highest learning rate; the same for the closed-book control.
    config.steps = 1000
    config.batch_size = 4
    config.row_length = 160
    config.learning_rate = 1e-3

    # Whose people are asked: "test"; "validation" is for choosing settings.
    config.split = "test"
    # Questions of each group at most, and those about people whom no document tells.
    config.questions = 60
    config.never_questions = 200
    # Questions that are run at once, and tokens of a reply.
    config.slots = 32
    config.max_tokens = 64
    return config


def sweep() -> list[dict]:
    """Conversations with invented people by steps: what does copying take?"""
    return [{"talks.search_invented": count, "steps": steps}
            for count in (300, 1000, 3000) for steps in (400, 800, 1600)]
