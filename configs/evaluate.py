"""Scores of one or two models on named test sets and files, with intervals, controls and the paired difference.

    python -m experiments.evaluate                                         # the laboratory's base, no download
    python -m experiments.evaluate --config.models="('models/smollm2',)" --config.data=../shared/data \\
        --config.tasks="('arc_easy','hellaswag','mmlu','lambada','core')" --config.limit=200
    python -m experiments.evaluate --config.models="('runs/a','runs/b')" --config.tasks="('mine=questions.jsonl',)"

Expected by default, in 1 minute on two CPU cores once the base is trained (7 minutes): of facts that its documents tell
the base finds two in five among four answers, of facts that none tells a quarter, which is chance; with the question
swapped for another it keeps somewhat more than a quarter, since some answers are told more often than others. No word
problem is solved. docs/evaluate.md has the table.
Written: report.html, report.md, results.json; parts/ holds each model's result on each task, so that a run goes on.
"""

from ml_collections import ConfigDict

from configs import lab

WORLD = ("world/facts", "world/untold", "world/problems", "text=world:1:tiny")


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the models by one."""
    config = ConfigDict()
    # One model or two: folders of models or runs. "lab" is the laboratory's base below, trained now or found;
    # "untrained" the same with weights as they are drawn. Two are compared on the same items.
    config.models = (arg,) if arg else ("lab",)
    config.base = lab.get_config()
    # Test sets by name, files as NAME=FILE, "core/NAME" for one task of CORE and "core" for all that are there:
    # docs/evaluate.md lists them.
    config.tasks = WORLD
    # Folder below which the files of named test sets are looked for.
    config.data = "../shared/data"

    # Items of a task at most, drawn; 0 is all.
    config.limit = 200
    # Examples before each item; -1 is each task's own number.
    config.shots = -1
    # Of the draws of items, shots and swaps, and of the base model.
    config.seed = 0
    # Whether to measure with the informative part swapped too; as dear as the task itself.
    config.control = True

    # Whether the token that begins a text stands before prompts; lm-eval's transformers backend often has none.
    config.begin = True
    # Whether generations are asked as a user's message, in the tokenizer's chat format.
    config.chat = False
    # Positions that may be used; 0 is the model's number. Longer contexts lose their beginning.
    config.max_length = 0
    # dtype of weights and activations: "float32" or "bfloat16".
    config.dtype = "float32"
    # Sizes of the mesh axes data, fsdp, tensor; one may be -1. Rows of a batch are split over data and fsdp.
    config.mesh = (-1, 1, 1)
    # Padded tokens of a batch of log-likelihoods, and replies written at once, both on each device.
    config.batch_tokens = 8192
    config.slots = 16
    # Tokens of padding that one more compiled program must save: few for a large model on a CPU, many on a GPU.
    config.program_tokens = 4096

    # What the model was trained on, for the report of contamination: documents as docs/sources.md names them, or a
    # folder of token shards made by the first model's tokenizer; "" leaves it out.
    config.corpus = ""
    # Words in a row that make an overlap.
    config.overlap_words = 13
    return config


def sweep() -> list[dict]:
    """What examples in the prompt add."""
    return [{"shots": shots} for shots in (0, 1, 5)]
