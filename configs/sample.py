"""Continues prompts with a trained model: text in the terminal, or jsonl.

    python -m experiments.sample --config.model=runs/pretrain_tiny --config.prompt="One day"
    python -m experiments.sample --config.model=runs/pretrain_tiny --config.samples=4 \\
        --config.prompts_file=prompts.txt --config.stream=False --config.output=samples.jsonl

Expected: each prompt, then its samples, each ended by the model's end of text or by max_tokens. The
same seed gives the same text, streamed or not. The first token comes after a compile of some
seconds.
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the model folder."""
    config = ConfigDict()
    # A model folder, or a run folder that holds one.
    config.model = arg or "runs/pretrain_tiny"

    # The text to continue; "" begins a new document.
    config.prompt = ""
    # A file of prompts, used in place of `prompt` when not "": .jsonl with a field "prompt" per
    # line, or text in which a line of three dashes (---) stands between prompts. A few-shot prompt
    # is one such text that shows some worked examples and ends where the model shall go on.
    config.prompts_file = ""
    # Continuations of each prompt.
    config.samples = 1
    # New tokens at most; prompt and these must fit the model's positions.
    config.max_tokens = 128
    # Special tokens that end a continuation, by their spelling in the tokenizer.
    config.stop = ("<|endoftext|>",)

    # How tokens are drawn (docs/sampling.md): 0 is greedy, 1 the model's own distribution.
    config.temperature = 0.8
    # Keep the k likeliest tokens; 0 is off.
    config.top_k = 0
    # Keep the likeliest tokens up to this probability together; 1 is off.
    config.top_p = 0.95
    # Keep tokens at least this many times as likely as the likeliest; 0 is off.
    config.min_p = 0.0
    # Above 1, tokens already in the row become less likely; 1 is off.
    config.repetition_penalty = 1.0
    # Of the randomness.
    config.seed = 0

    # Print tokens as they are drawn, one continuation after another; otherwise all run together,
    # quicker.
    config.stream = True
    # Prompts that run together when not streaming; bounds memory.
    config.batch = 32
    # Also write a jsonl here, one line per continuation: prompt, sample, text, tokens, logp,
    # stopped. "" for none; needs stream=False, since log-probabilities come from the batched loop.
    config.output = ""
    # dtype of activations and cache: "float32" or "bfloat16".
    config.dtype = "float32"
    return config


def sweep() -> list[dict]:
    """Returns the usual settings to compare by eye, from greedy to the bare distribution."""
    return [{"temperature": 0.0, "top_p": 1.0}, {"temperature": 0.8, "top_p": 0.95},
            {"temperature": 1.0, "top_p": 1.0}, {"temperature": 1.0, "top_p": 1.0, "min_p": 0.1}]
