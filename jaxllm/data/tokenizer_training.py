"""Learning the merges of a byte-level BPE, by the `tokenizers` library.

`jaxllm.data.tokenizer.train_tokenizer` is the way in.
"""

from collections.abc import Iterable

import tokenizers

from jaxllm.data.tokenizer_split import pieces


def learn_ranks(texts: Iterable[str], merges: int, pattern: str) -> dict[bytes, int]:
    """Learns byte-pair merges from the counts of the words of the texts.

    Args:
      texts: read once; a lone surrogate counts as U+FFFD.
      merges: how many merges to learn, at most; fewer when no pair is left.
      pattern: the regular expression that cuts a text into words.

    Returns:
      The id of each token's bytes: 0..255 for the bytes themselves, then the merges in order.
    """
    library = train_library_tokenizer(texts, merges, pattern)
    byte_of = _byte_of_character()
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token, id in library.get_vocab().items():
        if id >= 256:  # the library numbers the bytes in its alphabet's order, below 256 too
            ranks[bytes(byte_of[character] for character in token)] = id
    return ranks


def train_library_tokenizer(texts: Iterable[str], merges: int,
                            pattern: str) -> tokenizers.Tokenizer:
    """Trains the library's own tokenizer, of which `learn_ranks` takes the vocabulary."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    library.train_from_iterator(
        (piece for text in texts for piece in pieces(_without_surrogates(text))),
        tokenizers.trainers.BpeTrainer(vocab_size=256 + merges, show_progress=False,
                                       initial_alphabet=byte_level.alphabet()))
    return library


def _without_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _byte_of_character() -> dict[str, int]:
    # GPT-2's alphabet: a printable byte of Latin-1 stands for itself, the others for U+0100 and on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return ({chr(byte): byte for byte in printable}
            | {chr(0x100 + i): byte for i, byte in enumerate(others)})
