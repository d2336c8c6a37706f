"""The pages of the made-up web and what is known of each. The door to this is `world_web`."""

import dataclasses
import random
import re
import uuid
from collections.abc import Iterator, Sequence

from jaxllm.data import world_words
from jaxllm.data.world_table import World
from jaxllm.data.world_web_articles import articles, tale
from jaxllm.data.world_web_html import Block, Site, make_sites, plain, render, slug
from jaxllm.data.world_web_languages import LANGUAGES, foreign
from jaxllm.data.world_web_trash import MAKERS, plant_pii

# Sites to give the URL filter as its extra list. Whole hosts: the registered domains (example.org) are shared by all.
BLOCKED_DOMAINS = tuple(f"{name}.example.{end}" for name, end in (
    ("lucky-wheel", "com"), ("sure-winnings", "net"), ("pills-by-post", "com"), ("free-ringtones", "org"),
    ("mirror-of-mirrors", "net"), ("get-rich-by-noon", "com")))
FATES = ("keep", "url", "extract", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash",
         "either")
# Shares of words replaced in near duplicates: 5-gram Jaccard falls from 1 to about .1, most of it spread over .4 to 1.
EDIT_RATES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.15, 0.3)
SURELY, HARDLY = 0.85, 0.4  # Jaccard at which 14 buckets of 8 hashes match with probability .99, and .01
_OPEN_GROUPS = 4
_DECK = 200
_SITES = 60
_SPARE = """amber bright calm distant early faint gentle hollow idle jolly keen level modest narrow open plain quick
rough steady tidy upper vast warm young crooked dusty eager formal grave humble inner large mild nimble outer pale rare
shallow thin useful vivid weary curious sudden simple silent""".split()


@dataclasses.dataclass(frozen=True)
class Shares:
    """How a web is made up: the share of each kind of page. They are weights: only their proportions count."""

    article: float = 0.49
    pii: float = 0.04
    near_duplicate: float = 0.12
    foreign: float = 0.08
    spam: float = 0.06
    symbols: float = 0.02
    numbers: float = 0.02
    stub: float = 0.03
    links: float = 0.03
    code: float = 0.02
    lorem: float = 0.01
    few_sentences: float = 0.01
    lines: float = 0.03
    blocked: float = 0.02
    empty: float = 0.02

    def __post_init__(self):
        weights = dataclasses.asdict(self)
        bad = [kind for kind, weight in weights.items() if not 0 <= weight < float("inf")]
        if bad or not sum(weights.values()):
            raise ValueError(f"shares must be 0 or more and not all 0; got {weights}")
        if self.near_duplicate and not self.article:
            raise ValueError("near duplicates are copies of articles: a share of near_duplicate wants one of article")


KINDS = tuple(field.name for field in dataclasses.fields(Shares))


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page of the web and what is known of it.

    Args:
      url: unique; the host is under example.org, .com or .net.
      html: bytes in `charset`, which the head declares.
      kind: one of KINDS.
      text: the main text, one line a block: what a perfect extractor gives.
      fate: one of FATES: the stage of curation that should drop the page, "keep", or for a near duplicate whose
        Jaccard lies between HARDLY and SURELY "either".
      language: of the main text and of the site.
      group: names the cluster of an article and its near duplicates; "" outside of one.
      edit_rate: share of the words replaced in a near duplicate.
      jaccard: of its 5-grams with those of the first of its group, 0 to 1; 1 for the first, 0 outside of a group.
      pii: (kind, value) of planted personal data, of kind "email", "ip" or "phone".
      decoys: the same of what looks like it and is not: "private_ip", "version".
    """

    url: str
    html: bytes
    kind: str
    text: str
    fate: str
    charset: str = "utf-8"
    language: str = "en"
    group: str = ""
    edit_rate: float = 0.0
    jaccard: float = 0.0
    pii: tuple[tuple[str, str], ...] = ()
    decoys: tuple[tuple[str, str], ...] = ()

    @property
    def record_id(self) -> str:
        """The id of its WARC record, which depends on url and text alone."""
        return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{self.url} {self.text}')}>"


def jaccard(first: str, second: str, n: int = 5) -> float:
    """Returns |A and B| / |A or B| for the sets of word n-grams of two texts, in lower case without punctuation.

    >>> jaccard("a b c d e f", "A, b c d e! G", n=5)
    0.3333333333333333
    """
    one, two = (_grams(text, n) for text in (first, second))
    return len(one & two) / len(one | two) if one | two else 1.0


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(n)), strict=False))


def pages(world: World, seed: int = 0, count: int | None = 2000, *, shares: Shares = Shares(),
          banned_words: Sequence[str] = ()) -> Iterator[Page]:
    """Yields the pages of a web, each a function of the arguments; memory holds the plan of the world and a few groups.

    Args:
      world: from `make_world`; its documents stand in the articles and the pages with personal data, each on one page
        before any stands on a second one, in other words.
      seed: of the web.
      count: pages to yield; None: until every document of the world has stood on a page.
      shares: of the kinds; exact in every 200 pages, up to rounding.
      banned_words: words that the URL filter knows; half of the blocked pages then bear one in their path.

    Yields:
      Page.

    Raises:
      ValueError: a negative count.
    """
    if count is not None and count < 0:
        raise ValueError(f"count={count}: choose 0 or more pages, or None for the whole world")
    web = _Web(world, seed, turns=1 if count is None else None, banned_words=tuple(banned_words))
    made = 0
    while made != count:
        kind = _kind(shares, world.seed, seed, made)
        try:
            yield web.page(made, kind)
        except StopIteration:  # the world is told
            return
        made += 1


def _kind(shares: Shares, world_seed: int, seed: int, index: int) -> str:
    """The kind of page number `index`: kinds come in decks of `_DECK` that hold each in its share, at least once."""
    weights = {kind: weight for kind, weight in dataclasses.asdict(shares).items() if weight}
    scale = _DECK / sum(weights.values())
    deck = [kind for kind, weight in weights.items() for _ in range(max(1, round(weight * scale)))]
    number, place = divmod(index, len(deck))
    random.Random(f"{world_seed}/web/{seed}/deck/{number}").shuffle(deck)
    return deck[place]


class _Web:
    """What is carried from page to page: the articles still to come and the groups still open."""

    def __init__(self, world: World, seed: int, turns: int | None, banned_words: tuple[str, ...]):
        self.name = f"{world.seed}/web/{seed}"
        self.sites = make_sites(_SITES, random.Random(f"{self.name}/sites"))
        self.banned_words = banned_words
        self.articles = _turns(world, seed, turns)
        self.groups: list[tuple[str, list[Block], int]] = []  # name, blocks of the first, copies left
        self.rates: list[float] = []

    def page(self, index: int, kind: str) -> Page:
        rng = random.Random(f"{self.name}/page/{index}")
        if kind == "near_duplicate" and self.groups:
            return self._near_duplicate(index, rng)
        if kind in ("article", "near_duplicate"):
            return self._article(index, rng, grouped=kind == "near_duplicate" or len(self.groups) < _OPEN_GROUPS)
        site = rng.choice(self.sites)
        if kind == "pii":
            blocks, planted, decoys = plant_pii(next(self.articles), rng)
            return _page(index, kind, "keep", site, blocks, rng, pii=planted, decoys=decoys)
        if kind == "foreign":
            return self._foreign(index, site, rng)
        if kind == "blocked":
            folder = rng.choice(self.banned_words) if self.banned_words and rng.random() < 0.5 else None
            if folder is None:
                site = dataclasses.replace(site, host=rng.choice(BLOCKED_DOMAINS))
            return _page(index, kind, "url", site, tale(rng), rng, folder=folder or "post")
        if kind == "empty":
            return _page(index, kind, "extract", site, [], rng)
        make, fate = MAKERS[kind]
        return _page(index, kind, fate, site, make(rng), rng)

    def _article(self, index: int, rng: random.Random, grouped: bool) -> Page:
        blocks = next(self.articles)
        charset = "utf-8"
        if not grouped and rng.random() < 0.03:  # a few old sites that never heard of UTF-8
            charset = "iso-8859-1"
            blocks = [*blocks, Block("p", rng.choice((
                "The café by the gate serves crêpes and a naïve little cake called déjà vu, at £2 a piece.",
                "Señora Peña and Herr Müller, who keep the café, wish all readers a happy new year.")))]
        extra = {}
        if grouped:
            extra = {"group": f"{self.name}/{index}", "jaccard": 1.0}
            self.groups.append((extra["group"], blocks, rng.randint(2, 9)))
        return _page(index, "article", "keep", rng.choice(self.sites), blocks, rng, charset=charset, **extra)

    def _near_duplicate(self, index: int, rng: random.Random) -> Page:
        place = rng.randrange(len(self.groups))
        group, first, left = self.groups[place]
        self.groups[place:place + 1] = [(group, first, left - 1)] if left > 1 else []
        if not self.rates:
            self.rates = rng.sample(EDIT_RATES, len(EDIT_RATES))
        rate = self.rates.pop()
        blocks = edited(first, rate, rng)
        similar = jaccard(plain(first), plain(blocks))
        fate = "minhash" if similar >= SURELY else "keep" if similar < HARDLY else "either"
        return _page(index, "near_duplicate", fate, rng.choice(self.sites), blocks, rng, group=group, edit_rate=rate,
                     jaccard=similar)

    def _foreign(self, index: int, site: Site, rng: random.Random) -> Page:
        language = LANGUAGES[index % len(LANGUAGES)]
        title, paragraphs = foreign(language, rng.randint(7, 16), rng)
        old = rng.random() < 0.4
        charset = "utf-8" if not old else "shift_jis" if language == "ja" else "iso-8859-1"
        blocks = [Block("h1", title), *(Block("p", paragraph) for paragraph in paragraphs)]
        site = dataclasses.replace(site, language=language)
        return _page(index, "foreign", "language", site, blocks, rng, charset=charset)


def _turns(world: World, seed: int, turns: int | None) -> Iterator[list[Block]]:
    turn = 0
    while turn != turns:
        for _, blocks in articles(world, seed, turn):
            yield blocks
        turn += 1


def edited(blocks: Sequence[Block], rate: float, rng: random.Random) -> list[Block]:
    """Returns the blocks with `rate` of all their words replaced, never a name, a number or a value of a fact."""
    split = [block.text.split(" ") for block in blocks]
    places = [(i, j) for i, words in enumerate(split) for j, word in enumerate(words)
              if blocks[i].tag == "p" and word.isalpha() and word.islower() and word not in _PROTECTED]
    total = sum(map(len, split))
    for i, j in rng.sample(places, min(round(rate * total), len(places))):
        split[i][j] = rng.choice([word for word in _SPARE if word != split[i][j]])
    return [Block(block.tag, " ".join(words)) for block, words in zip(blocks, split, strict=True)]


# Besides the values, the words by which Gopher's rule knows English: a copy must fail as a copy only.
_PROTECTED = {value for table in world_words.VALUES.values() for values in table.values() for value in values} | {
    "the", "be", "to", "of", "and", "that", "have", "with"}


def _page(index: int, kind: str, fate: str, site: Site, blocks: list[Block], rng: random.Random, *,
          charset: str = "utf-8", folder: str | None = None, **truth) -> Page:
    title = slug(blocks[0].text) if blocks else "index"
    url = f"https://{site.host}/{folder or rng.choice(('post', 'news', 'archive', 'p'))}/{title}-{index}.html"
    html = render(site, blocks, rng, charset).encode(charset, "xmlcharrefreplace")
    return Page(url, html, kind, plain(blocks), fate, charset, site.language, **truth)
