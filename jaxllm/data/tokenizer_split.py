r"""How text is cut into words before byte pairs are merged; merges never cross a cut.

Each pattern covers every character, so nothing is dropped. They are stated here and not read from
tiktoken so that a tokenizer's fingerprint outlives a change of their spelling there.
"""

import re
from collections.abc import Mapping

# Possessive forms (`++`) of the published patterns: the same cuts, found faster. Two engines read
# them, tiktoken's and, in training, Oniguruma, to which `{1,3}+` is a repeated repetition and not a
# possessive one: it must not be written here.
_GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|%s| ?[^\s\p{L}\p{N}]++[\r\n]*+"
         r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
          rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
          r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

PATTERNS: Mapping[str, str] = {
    # GPT-2, r50k_base, p50k_base: a run of digits is one word, so numbers become arbitrary tokens.
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    # cl100k_base: digits in groups of up to three, contractions in any case.
    "gpt4": _GPT4 % r"\p{N}{1,3}",
    # gpt4 with each digit alone, the cuts of Qwen2's tokenizer: best for arithmetic.
    "digits": _GPT4 % r"\p{N}",
    # o200k_base: words are cut where case changes.
    "o200k": _O200K,
}

# Cuts of published tokenizers that have another spelling, or another meaning at the end of a text, than ours.
PUBLISHED: Mapping[str, str] = {
    # SmolLM2: each digit alone, then GPT-2's cut of what is between them (whose end is an end of text to it).
    "smollm2": (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++(?=\p{N}|\z)|\s+(?!\S)|\s"),
    # Llama-3: cl100k_base but for white space at the end of a text. https://github.com/meta-llama/llama3
    "llama3": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+"),
    # Qwen2, 2.5 and 3: Llama-3's with each digit alone.
    "qwen2": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+"),
}

# tiktoken's regex engine panics on a run of about 330,000 to a million whitespace characters.
WHITESPACE_RUN = 100_000
_WHITESPACE = re.compile(r"\s+")


def pieces(text: str) -> list[str]:
    """Returns the text, cut only inside runs of whitespace longer than WHITESPACE_RUN characters.

    >>> [len(piece) for piece in pieces("a" + " " * 150_000 + "b")]
    [100001, 50001]
    """
    if len(text) <= WHITESPACE_RUN:
        return [text]
    cuts = [0]
    for run in _WHITESPACE.finditer(text):
        cuts.extend(range(run.start() + WHITESPACE_RUN, run.end(), WHITESPACE_RUN))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
