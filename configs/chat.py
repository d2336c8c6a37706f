"""Talks to a chat model in the terminal, as the chat page does in a browser.

    python -m experiments.chat --config.model=models/smollm2
    python -m experiments.chat --config.model=models/smollm2 --config.system="Be brief." --config.save=talk.jsonl

Expected: the model's reply to each line, as it is written. The first token comes after a compile of some seconds; the
same seed and the same lines give the same replies. /help lists the commands. Input that is not a terminal is read line
by line, so a conversation can be piped in.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model folder."""
    config = ConfigDict()
    # A model folder, or a run folder that holds one; its tokenizer must have a chat template, or see `template`.
    config.model = arg or "runs/pretrain_tiny"
    # Chat format: "" is the model's own; else im_sep, chatml, llama3 or gemma, for a model that was trained on one
    # and does not say so.
    config.template = ""
    # The system message; "" is none. /system changes it.
    config.system = ""

    # Tokens of a reply at most.
    config.max_tokens = 256
    # Tokens of the whole conversation at most; the model's positions bound it too. It costs memory from the start.
    config.capacity = 2048
    # How tokens are drawn (docs/sampling.md): 0 is greedy, 1 the model's own distribution.
    config.temperature = 0.7
    # Keep the k likeliest tokens; 0 is off.
    config.top_k = 0
    # Keep the likeliest tokens up to this probability together; 1 is off.
    config.top_p = 0.95
    # Keep tokens at least this many times as likely as the likeliest; 0 is off.
    config.min_p = 0.0
    # Above 1, tokens already in the conversation become less likely; 1 is off.
    config.repetition_penalty = 1.0
    # Of the randomness; a retry draws anew.
    config.seed = 0

    # Where the conversation goes at the end, as one line of jsonl; "" keeps none. /save writes it at any time.
    config.save = ""
    # dtype of activations and cache: "float32" or "bfloat16".
    config.dtype = "float32"
    return config


def sweep() -> list[dict]:
    """Returns settings to compare by eye on the same lines."""
    return [{"temperature": 0.0, "top_p": 1.0}, {"temperature": 0.7, "top_p": 0.95},
            {"temperature": 1.0, "top_p": 1.0, "min_p": 0.1}]
