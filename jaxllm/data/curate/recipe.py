"""What a curation does: every stage of FineWeb in its order, with every threshold, as frozen records.

The defaults of the records are those of FineWeb's published pipeline; `fineweb()` and `fast()` are the two recipes by
name. A recipe has a fingerprint, and a run lives in a folder that bears it: changed settings never meet old results.

References: Penedo et al., The FineWeb Datasets, 2024. https://arxiv.org/abs/2406.17557
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Read:
    """Which records become pages. A page that is left out is counted by its reason.

    Attributes:
      max_page_bytes: larger pages are passed over without being held in memory.
    """

    max_page_bytes: int = 10_000_000


@dataclasses.dataclass(frozen=True)
class Url:
    """Drops pages of listed hosts and addresses, and addresses with listed words.

    Attributes:
      integrated_lists: use the lists that come with datatrove (4.6 million hosts; UT1, Toulouse).
      extra_domains: file with further hosts, a line each; "" for none.
      soft_words: so many words of the soft list in one address drop it.
    """

    on: bool = True
    integrated_lists: bool = True
    extra_domains: str = ""
    soft_words: int = 2


@dataclasses.dataclass(frozen=True)
class Extract:
    """Main text out of HTML, each page in a child process with a time limit.

    Attributes:
      extractor: "trafilatura" (FineWeb's), "resiliparse" (20 times faster, DCLM's), or "none" (pages are text).
      favor_precision: trafilatura: rather less text than boilerplate.
      deduplicate: trafilatura: drop lines that earlier pages of the same process had. FineWeb has it on; the text of a
        page then depends on the pages before it, so the output on the number of tasks.
      seconds: limit for one page. FineWeb's is 1, within which a busy machine loses good pages.
      max_timeout_share: a run in which more of the pages than this ran into the limit fails.
    """

    on: bool = True
    extractor: str = "trafilatura"
    favor_precision: bool = True
    deduplicate: bool = False
    seconds: float = 10.0
    max_timeout_share: float = 0.005


@dataclasses.dataclass(frozen=True)
class Language:
    """Keeps pages in given languages by fastText's lid.176.

    Attributes:
      model: path of lid.176.ftz or lid.176.bin; "" looks in $JAXLLM_LANGUAGE_MODEL.
      languages: ISO 639-1 codes.
      threshold: least probability.
    """

    on: bool = True
    model: str = ""
    languages: tuple[str, ...] = ("en",)
    threshold: float = 0.65


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Drops text that repeats itself; shares of characters or of lines and paragraphs.

    Attributes:
      top_n_grams: (n, share): the characters in the most frequent n-gram.
      duplicated_n_grams: (n, share): the characters in all n-grams that occur more than once.

    References: Rae et al., Gopher, 2021, table A1. https://arxiv.org/abs/2112.11446
    """

    on: bool = True
    duplicate_lines: float = 0.3
    duplicate_paragraphs: float = 0.3
    duplicate_line_characters: float = 0.2
    duplicate_paragraph_characters: float = 0.2
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    duplicated_n_grams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11),
                                                         (10, 0.10))


@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Drops what does not look like prose: lengths, symbols, bullets, words without letters, no stop words.

    References: Rae et al., Gopher, 2021, appendix A.1.1. https://arxiv.org/abs/2112.11446
    """

    on: bool = True
    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: float = 3.0
    max_mean_word_length: float = 10.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_words_with_letters: float = 0.8
    min_stop_words: int = 2


@dataclasses.dataclass(frozen=True)
class C4:
    """C4's rules by line and page, without the one on terminal punctuation, which cost FineWeb too much text.

    References: Raffel et al., T5, 2020, section 2.2. https://arxiv.org/abs/1910.10683
    """

    on: bool = True
    lines_end_in_punctuation: bool = False
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True


@dataclasses.dataclass(frozen=True)
class FineWeb:
    """FineWeb's own three filters, and one against lists.

    Attributes:
      min_lines_with_punctuation: share of lines that end in punctuation.
      max_duplicate_line_characters: share of characters in repeated lines. The paper states 0.1, datatrove's default
        is 0.01; `fineweb()` takes datatrove's, with which the data were made.
      max_short_lines, short_line: share of lines of at most so many characters.
      max_newlines_per_word: datatrove's, not in the paper.
    """

    on: bool = True
    min_lines_with_punctuation: float = 0.12
    max_duplicate_line_characters: float = 0.01
    max_short_lines: float = 0.67
    short_line: int = 30
    max_newlines_per_word: float = 0.3


@dataclasses.dataclass(frozen=True)
class MinHash:
    """Of near duplicates keeps one: two texts share a bucket with probability 1 - (1 - s^hashes)^buckets at Jaccard
    similarity s of their n-grams.

    References: Broder, On the resemblance and containment of documents, 1997.
    """

    on: bool = True
    n_gram: int = 5
    buckets: int = 14
    hashes: int = 8
    precision: int = 64
    hash: str = "sha1"
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Pii:
    """Replaces email addresses and public IP addresses. Telephone numbers stay, as in FineWeb."""

    on: bool = True
    emails: bool = True
    ips: bool = True


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All stages. `words` cuts words and sentences for the filters: "spacy" (datatrove's) or "blingfire"."""

    name: str
    words: str = "spacy"
    read: Read = Read()
    url: Url = Url()
    extract: Extract = Extract()
    language: Language = Language()
    gopher_repetition: GopherRepetition = GopherRepetition()
    gopher_quality: GopherQuality = GopherQuality()
    c4: C4 = C4()
    fineweb: FineWeb = FineWeb()
    minhash: MinHash = MinHash()
    pii: Pii = Pii()

    def __post_init__(self) -> None:
        _choose("words", self.words, ("spacy", "blingfire"))
        _choose("extract.extractor", self.extract.extractor, ("trafilatura", "resiliparse", "none"))
        _choose("minhash.hash", self.minhash.hash, ("sha1", "xxhash"))
        _choose("minhash.precision", self.minhash.precision, (32, 64))
        if not self.language.languages:
            raise ValueError("language.languages is empty, which would drop every page; name one, or set language.on "
                             "to False")
        for path, value in _leaves(dataclasses.asdict(self)):
            if isinstance(value, (int, float)) and value < 0:
                raise ValueError(f"{path} is {value}; it must not be negative")

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits over every setting."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def without(self, stage: str) -> Recipe:
        """The same recipe with one stage off."""
        return dataclasses.replace(self, **{stage: dataclasses.replace(getattr(self, stage), on=False)})


STAGES = ("read", "url", "extract", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash",
          "pii")
SWITCHABLE = STAGES[1:]


def fineweb() -> Recipe:
    """FineWeb as it was made, but for `extract.deduplicate` and `extract.seconds` (see there)."""
    return Recipe("fineweb")


def fast() -> Recipe:
    """The same stages at several times the speed: resiliparse extracts, blingfire cuts words.

    Resiliparse keeps lists and tables that trafilatura drops, so the thresholds that such text meets are moved until
    the recipe keeps what `fineweb` keeps, as far as docs/curate.md shows.
    """
    return Recipe("fast", words="blingfire", extract=Extract(extractor="resiliparse"),
                  gopher_quality=GopherQuality(min_words_with_letters=0.77),
                  fineweb=FineWeb(max_duplicate_line_characters=0.1), minhash=MinHash(hash="xxhash"))


def from_mapping(settings: Mapping[str, Any]) -> Recipe:
    """A recipe from nested mappings with every key of the records and no other (a config file, recipe.json).

    Raises:
      ValueError: a key is missing or unknown.
    """
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    _same_keys("recipe", settings, fields)
    stages = {}
    for name in STAGES:
        record = type(fields[name].default)
        _same_keys(name, settings[name], {field.name for field in dataclasses.fields(record)})
        stages[name] = record(**{key: _tuples(value) for key, value in settings[name].items()})
    return Recipe(settings["name"], settings["words"], **stages)


def _same_keys(where: str, given, wanted) -> None:
    if unknown := sorted(set(given) - set(wanted)):
        raise ValueError(f"{where} has no setting {unknown[0]!r}; it has {', '.join(wanted)}")
    if missing := sorted(set(wanted) - set(given)):
        raise ValueError(f"{where} lacks the setting {missing[0]!r}")


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _choose(name: str, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose from {', '.join(map(repr, choices))}")


def _leaves(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from _leaves(value, path)
    else:
        yield path, tree
