"""Which of IFEval's thirty languages a text is in: by script, and where several share one, by function words."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Mapping

# First and last code point -> the languages written so.
SCRIPTS: Mapping[tuple[int, int], tuple[str, ...]] = {
    (0x0041, 0x024F): ("en", "es", "pt", "fr", "de", "it", "pl", "vi", "sw", "fi"),
    (0x1E00, 0x1EFF): ("vi",),
    (0x0400, 0x04FF): ("ru", "uk", "bg"),
    (0x0590, 0x05FF): ("he",),
    (0x0600, 0x06FF): ("ar", "fa", "ur"),
    (0x0900, 0x097F): ("hi", "mr", "ne"),
    (0x0980, 0x09FF): ("bn",),
    (0x0A00, 0x0A7F): ("pa",),
    (0x0A80, 0x0AFF): ("gu",),
    (0x0B80, 0x0BFF): ("ta",),
    (0x0C00, 0x0C7F): ("te",),
    (0x0C80, 0x0CFF): ("kn",),
    (0x0D00, 0x0D7F): ("ml",),
    (0x0E00, 0x0E7F): ("th",),
    (0x3040, 0x30FF): ("ja",),
    (0xAC00, 0xD7AF): ("ko",),
}
# Frequent function words of languages that share a script.
WORDS: Mapping[str, frozenset[str]] = {code: frozenset(words.split()) for code, words in {
    "en": "the of and to in is that for it as with was on are be this you by i my your we not or from have",
    "es": "el la de que y en los las del se un una por con para es no su al lo como",
    "pt": "o a de que e do da em um uma os as para com não por se mais no na dos é",
    "fr": "le la les de des et en un une du que est pour dans qui sur pas au ce il je vous",
    "de": "der die das und in zu den ist nicht von mit ein eine sich auf für dem des es ich sie",
    "it": "il la di che e un una per non in sono del della con si le i lo da gli è",
    "pl": "i w nie na się z do to że jest o jak po co ale od za",
    "vi": "và của là có trong cho không một được những với các để tôi bạn",
    "sw": "ya wa na kwa ni katika za la cha kuwa hii kama yake pia au si",
    "fi": "ja on ei että se oli en hän mutta ovat kun niin myös olen sen tämä",
    "ru": "и в не на что с как это он к по но его из вы",
    "uk": "і в не на що з як це та до його але є й від",
    "bg": "и в не на че с като това се е за да от са ще",
    "ar": "في من على أن إلى هذا التي عن مع هذه كان لا",
    "fa": "و در به از که را این با است برای آن یک می",
    "ur": "کے میں کی ہے اور سے کا کو نے پر ہیں یہ کہ",
    "hi": "और है में के की से का को हैं पर यह ने भी",
    "mr": "आणि आहे या आहेत ते व ही हे नाही मी तर हा",
    "ne": "र छ मा पनि हो यो लाई छन् हुन्छ गर्न तपाईं म",
}.items()}
_WORD = re.compile(r"[^\W\d_]+(?:[\u0300-\u036f\u0900-\u0dff]+[^\W\d_]*)*")


def language_of(text: str) -> str:
    """ISO 639-1 code of the language that most letters of a text are written in, or "" where it has none of these.

    >>> language_of("the cat sat on the mat"), language_of("die Katze ist nicht auf dem Dach"), language_of("12")
    ('en', 'de', '')
    """
    letters = collections.Counter(languages for character in text if character.isalpha()
                                  for languages in [_written_with(ord(character))] if languages)
    if not letters:
        return ""
    candidates = letters.most_common(1)[0][0]
    if candidates == SCRIPTS[0x0041, 0x024F] and letters[("vi",)] > 0.03 * letters.total():
        return "vi"
    if len(candidates) == 1:
        return candidates[0]
    words = collections.Counter(_WORD.findall(text.lower()))
    counts = {code: sum(words[word] for word in WORDS[code]) for code in candidates}
    return max(candidates, key=counts.__getitem__)


@functools.lru_cache(maxsize=4096)
def _written_with(code_point: int) -> tuple[str, ...]:
    return next((languages for (first, last), languages in SCRIPTS.items() if first <= code_point <= last), ())
