"""Trains a byte-level BPE tokenizer and reports how well it compresses text that it has not seen.

    python -m experiments.train_tokenizer --workdir=runs/tokenizer

Under half a minute on 2 CPU cores with the embedded world. Expected: 3.6 to 4.0 bytes per token on
its held-out documents, where gpt2 takes 1.10 to 1.18 times as many tokens. Written:

    runs/tokenizer/tokenizer/            the tokenizer: ranks.tiktoken, tokenizer_config.json
    runs/tokenizer/compression.md .json  tokens and bytes per token, beside the reference tokenizers
"""

from ml_collections import ConfigDict

from jaxllm.data.tokenizer import SPECIAL_TOKENS


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the config; `arg` (`--config=FILE:arg`) replaces the source."""
    config = ConfigDict()
    # Where text comes from, as jaxllm.data.sources.open_source takes it: "world:0" is the embedded
    # world; a .txt, .jsonl(.gz) or .parquet file, or a folder of them, is read from disk.
    config.source = arg or "world:0"
    # The field that holds the text in jsonl, parquet and TFDS.
    config.text_key = "text"

    # Ids in all: 256 bytes, the merges, the special tokens. Small models want few (the embedding is
    # their largest matrix): 512 to 8,192 under 50M parameters, 32,768 and more from 500M on.
    config.vocab_size = 4096
    # Where text is cut: "gpt2", "gpt4" (numbers in threes), "digits" (one by one), "o200k".
    config.pattern = "gpt4"
    # Spellings of the special tokens, in the order of their ids, which come after the merges.
    config.special_tokens = SPECIAL_TOKENS

    # Training stops reading after this many characters (counting words needs no more for a small
    # vocabulary; memory grows with the number of different words, not with the text).
    config.max_characters = 200_000_000
    # Share of the documents held out of training, chosen by a hash of the document's id.
    config.heldout_percent = 5.0
    # At most this many characters of them are measured.
    config.max_heldout_characters = 2_000_000

    # Tokenizers to compare with: names of tiktoken encodings or folders. One that cannot be loaded
    # (no network and no TIKTOKEN_CACHE_DIR) is named in the report as not measured.
    config.references = ("gpt2", "cl100k_base")
    # Threads that encode the held-out documents.
    config.threads = 8
    return config


def sweep() -> list[dict]:
    """Returns the vocabulary sizes to compare, bytes per token against embedding size."""
    return [{"vocab_size": size} for size in (512, 1024, 2048, 4096, 8192)]
