"""Words and sentences for the filters by blingfire, some fifty times as fast as spaCy.

datatrove chooses its splitter by language from a table of its own, without a way to add one; `use` puts this one in
front of it under the name `LANGUAGE`, which the filters of a recipe with words="blingfire" are given.
"""

from __future__ import annotations

from datatrove.utils import word_tokenizers
from datatrove.utils.word_tokenizers import WordTokenizer

LANGUAGE = "blingfire"
_theirs = word_tokenizers.load_word_tokenizer


class Blingfire(WordTokenizer):
    """datatrove's interface on blingfire, a compiled finite-state tokenizer for languages that write spaces.

    References: https://github.com/microsoft/BlingFire
    """

    def __init__(self) -> None:
        super().__init__(LANGUAGE)

    def word_tokenize(self, text: str) -> list[str]:
        """Words and punctuation marks."""
        import blingfire

        return blingfire.text_to_words(text).split(" ") if text.strip() else []

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences without the white space around them."""
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each sentence, in characters."""
        import blingfire

        if not text.strip():
            return []
        return [tuple(span) for span in blingfire.text_to_sentences_and_offsets(text)[1]]


def use() -> None:
    """Lets datatrove's filters find `LANGUAGE` in this process."""
    word_tokenizers.load_word_tokenizer = lambda language: Blingfire() if language == LANGUAGE else _theirs(language)
