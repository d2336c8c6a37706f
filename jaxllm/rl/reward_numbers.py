"""Numbers as people and models write them, read exactly and without evaluating anything.

Read are 1,234.50, -3, \u22123, .5, 3/4, 1 1/2, \\frac{3}{4}, 2.5e3, 2.5 \\times 10^{3}, $5, 5 km, 5%, 3 million and
digits of every script. A text that holds two different numbers, a negation, a hedge or arithmetic is no number.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction

MAX_CHARS = 400  # of one number as it is written
MAX_EXPONENT = 400  # of a power of ten
MAX_WORDS = 12  # beside a number
TAIL = 4_000  # characters at the end of a text in which its last number is looked for
SIGNIFICANT = 6  # digits of a decimal that may stand for a fraction without a finite decimal

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words beside a number that make it another number, or no answer at all.
_SPOIL = frozenset("""not isn't aren't never no neither nor or either between than least most under over above below
about approximately roughly around maybe perhaps possibly minus negative plus times twice double half third quarter
squared cubed factorial root square to through unknown unsure if dozen score""".split())
_UNITS = frozenset("gshmLl")  # of one letter; any other letter may be a variable
_ARTICLE = re.compile(r"\ba(?= [a-z]{2})|(?<=degrees )[CF]\b")

_SAME = {**dict.fromkeys("\u2212\ufe63\uff0d", "-"), "\uff0b": "+", "\uff0c": ",", "\uff0e": ".", "\uff05": "%",
         "\uff0f": "/", "\u2044": "/", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2248": "=", "\u2019": "'",
         "\u00b0": " degrees ", **dict.fromkeys("$\u20ac\u00a3\u00a5\u20b9`\"\u201c\u201d", ""),
         **dict.fromkeys("\u00a0\u2009\u202f", "\u2009")}
_LATEX = tuple((re.compile(pattern), new) for pattern, new in (
    (r"\\(?:text|mathrm|mathbf|textbf|mbox|mathit)\s*\{([^{}\\]*)\}", r" \1 "),
    (r"\\(?:left|right|displaystyle|!|,|;|:|\$)|\{,\}(?=\d)", lambda match: "," if match[0] == "{,}" else ""),
    (r"\\[dtc]?frac", r"\\frac"), (r"\\%", "%"), (r"\\approx(?![a-zA-Z])", "="),
    (r"\\(?:times|cdot)(?![a-zA-Z])", "*"), (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", " degrees "),
    (r"\\frac\s*\{\s*(-?)(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1\2/\3 "), (r"\\frac\s?(\d)\s?(\d)(?!\d)", r" \1/\2 "),
    (r"(?<![\w)])\*\*|\*\*(?![\w(-])", ""), (r"(-)\s+(?=\d+/\d)", r"\1"),
    (r"(?:(?<=[a-z][a-z])|(?<=\bm))(?:\^\{?[23]\}?|[\u00b2\u00b3])", ""),
    (r"(?<=\d)\u2009(?=\d{3}(?!\d))", ""), (r"\u2009", " ")))

_NUMBER = re.compile(r"""
    (?<![\w.\\^!\u221a/])(?<!\d,)                      # not inside a word, another number or a power
    (?P<sign>(?<![)\]}%])[-+](?=[\d.]))?
    (?:(?P<whole>\d++)\s++(?=\d++\s*+/))?              # of 1 1/2
    (?P<digits>(?:(?:[1-9]\d{0,2}(?:,\d{3})++|\d++)(?:\.\d++)?+|\.\d++))(?![,.]?\d)
    (?:[eE](?P<e>[-+]?\d{1,6})(?!\d)
       |\s*[*x]\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<p>[-+]?\d{1,6})\s*\}|(?P<q>[-+]?\d{1,6})))?
    (?:\s*/\s*(?P<below>\d++)(?![,.]?\d))?
    """, re.VERBOSE)
_AFTER = re.compile(r"\s*(?:[\^*/({\[_!]|\\)|[^\W\d_]+")
_SCALING = re.compile(r"[\s-]*([a-z]+)\b", re.IGNORECASE)
_OTHER = re.compile(r"[\\^*<>|{}\[\]_~+!?&#@=]|-(?![^\W\d])|(?<![^\W\d])-|/(?![^\W\d])|(?<![^\W\d])/")
_WORD = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")


@dataclasses.dataclass(frozen=True)
class Number:
    """A number with how it was written.

    Attributes:
      value: exact.
      places: digits behind the decimal point, negative for 2.5e3; None for a whole number or a fraction.
      significant: digits from the first that is not 0.
    """

    value: Fraction
    places: int | None
    significant: int


def plain(text: str) -> str:
    """The text with one spelling of digits, signs, blanks and the LaTeX of numbers, and without currencies."""
    if not text.isascii():
        text = "".join(map(_plain_character, text))
    text = text.replace("\\$", "").translate({ord("$"): "", ord("`"): "", ord('"'): ""})
    for pattern, new in _LATEX:
        text = pattern.sub(new, text)
    return text


def _plain_character(character: str) -> str:
    if character in _SAME:
        return _SAME[character]
    if not character.isascii() and unicodedata.category(character) == "Nd":
        return str(unicodedata.decimal(character))
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return character


def _numbers(text: str) -> Iterator[tuple[int, int, Number]]:
    """(start, end, number) of every number in a plain text that is no part of arithmetic or of a name."""
    for match in _NUMBER.finditer(text):
        scale, end = 1, match.end()
        if following := _AFTER.match(text, end):
            word = following[0]
            if not word[-1].isalpha() or len(word) == 1 and word not in _UNITS:
                continue
        elif end < len(text) and unicodedata.category(text[end]) == "No":  # a power, as in 5\u00b2
            continue
        if scaling := _SCALING.match(text, end):
            scale = _SCALES.get(scaling[1].lower(), 1)
            end = scaling.end() if scale > 1 else end
        number = _value(match, scale)
        if number is not None:
            yield match.start(), end, number


def _value(match: re.Match, scale: int) -> Number | None:
    if len(match[0]) > MAX_CHARS:
        return None
    exponent = int(match["e"] or match["p"] or match["q"] or 0)
    below = int(match["below"] or 1)
    if abs(exponent) > MAX_EXPONENT or below == 0 or match["whole"] and below == 1:
        return None
    digits = match["digits"].replace(",", "")
    value = Fraction(digits) * Fraction(10)**exponent / below + int(match["whole"] or 0)
    behind = digits.partition(".")[2]
    places = len(behind) - exponent if ("." in digits or exponent) and below == 1 and scale == 1 else None
    return Number((-value if match["sign"] == "-" else value) * scale, places, len(digits.replace(".", "").lstrip("0")))


def read_number(text: str) -> Number | None:
    """The one number that a text says, or None.

    Units, currencies, the percent sign and a few words beside it do not matter: 5 km, $5, 5% and "5 apples" are 5. What
    stands before the last equals sign does not matter either. None for two different numbers ("41 or 42"), for hedges
    and negations ("not 42", "about 42"), for arithmetic ("6 * 7", "42!", "5x") and for more than MAX_WORDS words.

    Args:
      text: an extracted answer.

    >>> [str(read_number(text).value) for text in ("$1,234.50", "x = 1/2", "12 eggs")], read_number("about 3")
    (['2469/2', '1/2', '12'], None)
    """
    said = plain(text).rpartition("=")[2].strip()
    if said.startswith("{") and said.endswith("}"):
        said = said[1:-1]
    said = re.sub(r"^([-+])\s+(?=[\d.])", r"\1", said)
    found = list(_numbers(said))
    if not found or any(number.value != found[0][2].value for _, _, number in found):
        return None
    rest, at = [], 0
    for start, end, _ in found:
        rest.append(said[at:start])
        at = end
    beside = _ARTICLE.sub("", " ".join([*rest, said[at:]]))
    words = _WORD.findall(beside)
    if (_OTHER.search(beside) or any(unicodedata.category(character)[0] == "N" for character in beside)
            or len(words) > MAX_WORDS
            or any(word.lower() in _SPOIL or len(word) == 1 and word not in _UNITS for word in words)):
        return None
    return min((number for _, _, number in found), key=lambda number: number.significant)


def last_number(text: str) -> str | None:
    """The last number in the last TAIL characters, whatever stands beside it, in plain spelling; None without one."""
    said, last = plain(text[-TAIL:]), None
    for start, end, _ in _numbers(said):
        last = said[start:end]
    return last


def same(first: Number, second: Number) -> bool:
    """Whether two numbers are equal.

    Exactly, with one exception: a decimal of at least SIGNIFICANT digits stands for a fraction that has no finite
    decimal (1/3, not 1/8) when it is that fraction rounded or cut to its places.

    >>> third = read_number("1/3")
    >>> [same(third, read_number(text)) for text in ("2/6", "0.333333", "0.33", "0.333334")]
    [True, True, False, False]
    """
    return first.value == second.value or _stands_for(first, second.value) or _stands_for(second, first.value)


def _stands_for(decimal: Number, exact: Fraction) -> bool:
    if decimal.places is None or decimal.significant < SIGNIFICANT or _is_finite(exact):
        return False
    unit = Fraction(10)**-decimal.places
    return decimal.value / unit in (round(exact / unit), math.trunc(exact / unit))


def _is_finite(value: Fraction) -> bool:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return below == 1
