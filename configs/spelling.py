"""Why do models misspell and miscount letters? Error against characters per token, as the vocabulary grows.

    python -m experiments.spelling
    python -m experiments.spelling --config.seeds="(0, 1, 2, 3, 4)"

The same small model learns to spell words and to count a letter in them, from the same examples in the same order,
with tokenizers of growing vocabularies, all trained on the same words. The smallest vocabulary is bytes: the control.
Needs the extra `tools` (the model's Python runs in the sandbox). docs/spelling.md has what came out: spelling
error from 0.18 with bytes to 0.99 at 3.3 characters per token; counting is not learnt in so few updates. 6 minutes on
one CPU core.
"""

from ml_collections import ConfigDict

from configs import lab


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config."""
    del arg
    config = ConfigDict()
    # Of the words, the questions, the weights and the order; each is a whole run of every vocabulary.
    config.seeds = (0, 1, 2)
    # Ids of each tokenizer, special tokens included; 263 is bytes and nothing else.
    config.vocab_sizes = (263, 350, 600, 1500)

    # Made-up words, of syllables some of which are far more frequent than others.
    config.words = 2500
    # Tenths of the words, by a hash, in the validation and in the test split.
    config.held_out_tenths = 1
    # Which split is measured: "validation" while anything is still being chosen, "test" afterwards.
    config.split = "test"
    # Letters are counted from 0 to this; every count is the right answer equally often.
    config.most = 2

    # Updates, and questions in each; a question is an example of every task. The letter asked for is drawn anew in
    # every pass over the words. Every vocabulary sees the same questions in the same update.
    config.steps = 2000
    config.batch_size = 2
    config.warmup_steps = 50
    config.learning_rate = 3e-3
    config.weight_decay = 0.0
    # The model, but for its embedding.
    config.model = lab.shape(64, layers=2)
    return config


def sweep() -> list[dict]:
    """More examples and a larger model: does the error of long tokens go away?"""
    return [{"steps": steps, "model.dim": dim, "model.head_dim": dim // 4, "model.mlp_dim": 3 * dim}
            for steps in (2000, 4000, 8000, 16_000) for dim in (64, 128)]
