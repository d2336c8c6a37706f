"""The table behind the made-up world: people, places and things, their facts, and how often each is
told.

A world is drawn from one seed. Nothing about it is stored anywhere else: pages, questions, problems
and tools of every later stage look facts up here. A fact of the band "never" is true and stands in
no document, so what a model says about it was not learnt from the text.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator

from jaxllm.data import world_words as words

KINDS = ("person", "place", "thing")
BANDS = ("often", "sometimes", "rare", "once", "never")


@dataclasses.dataclass(frozen=True)
class WorldSize:
    """How large a world is: entities per band, how often a band is told, and pages about nobody.

    Args:
      people, places, things: number of entities in each of BANDS, in that order.
      times_told: number of documents in which each fact of a band stands, in the order of BANDS.
      held_out_share: share of the people told at least twice with one attribute that is never told.
      stories, lists, problems: number of documents of these kinds, which speak of no entity of the
        table.
    """

    people: tuple[int, int, int, int, int]
    places: tuple[int, int, int, int, int]
    things: tuple[int, int, int, int, int]
    times_told: tuple[int, int, int, int, int]
    held_out_share: float
    stories: int
    lists: int
    problems: int

    def __post_init__(self):
        if self.times_told[3:] != (1, 0) or list(self.times_told) != sorted(self.times_told)[::-1]:
            raise ValueError(
                f"times_told must fall along {BANDS} and end in 1, 0; got {self.times_told}"
            )
        if sum(self.places[:4]) == 0:
            raise ValueError(
                "a world needs at least one place that is told, as a home for its people"
            )


SIZES = {
    "tiny": WorldSize(
        people=(4, 6, 8, 60, 20),
        places=(4, 3, 2, 2, 2),
        things=(2, 2, 2, 4, 2),
        times_told=(12, 5, 2, 1, 0),
        held_out_share=0.25,
        stories=20,
        lists=40,
        problems=60,
    ),
    "small": WorldSize(
        people=(60, 100, 160, 2000, 400),
        places=(12, 16, 16, 16, 12),
        things=(8, 16, 24, 120, 40),
        times_told=(40, 12, 3, 1, 0),
        held_out_share=0.15,
        stories=700,
        lists=1600,
        problems=2400,
    ),
    # For experiments on what a model knows: many people that it can know, and a long tail of people told once.
    "lab": WorldSize(
        people=(160, 40, 60, 1500, 600),
        places=(12, 16, 16, 16, 12),
        things=(8, 8, 8, 40, 20),
        times_told=(30, 8, 2, 1, 0),
        held_out_share=0.15,
        stories=100,
        lists=3000,
        problems=600,
    ),
    # The same in two thirds of the documents, for the whole road in one command: fewer people, told more often.
    "road": WorldSize(
        people=(60, 30, 40, 900, 400),
        places=(12, 12, 12, 12, 8),
        things=(8, 8, 8, 30, 16),
        times_told=(55, 8, 2, 1, 0),
        held_out_share=0.15,
        stories=100,
        lists=1800,
        problems=400,
    ),
    "large": WorldSize(
        people=(400, 800, 1600, 24000, 4000),
        places=(40, 60, 60, 60, 40),
        things=(60, 120, 200, 1400, 200),
        times_told=(60, 16, 4, 1, 0),
        held_out_share=0.15,
        stories=10000,
        lists=16000,
        problems=24000,
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entity:
    """A person, place or thing. A person's pronoun is "he" or "she", all else is "it"."""

    kind: str
    name: str
    band: str
    pronoun: str

    @property
    def text(self) -> str:
        """The name as it stands inside a sentence ("the Silver Compass")."""
        return f"the {self.name}" if self.kind == "thing" else self.name


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One fact of the table: `value` is the `attribute` of `entity`, told in `times_told`
    documents.

    >>> ada = Entity("person", "Ada Fenwick", "once", "she")
    >>> fact = Fact(ada, "job", "baker", "once", 1)
    >>> fact.question(), fact.sentence()
    ('What is the job of Ada Fenwick?', 'Ada Fenwick works as a baker.')
    """

    entity: Entity
    attribute: str
    value: str
    band: str
    times_told: int

    @property
    def wordings(self) -> int:
        """Number of wordings of the question; the last one stands in no document."""
        return len(words.QUESTIONS[self.entity.kind, self.attribute])

    def question(self, wording: int = 0) -> str:
        """Returns the question whose answer is `value`; wording -1 is the held-out one."""
        wordings = words.QUESTIONS[self.entity.kind, self.attribute]
        return wordings[wording].format(n=self.entity.text)

    def sentence(self, wording: int = 0, subject: str | None = None) -> str:
        """Returns the fact as a sentence about `subject` (default: the entity's name)."""
        wordings = words.SENTENCES[self.entity.kind, self.attribute]
        return words.fill(
            wordings[wording % len(wordings)],
            subject or self.entity.text,
            self.entity.pronoun,
            v=self.value,
            a=words.with_article(self.value),
        )


@dataclasses.dataclass(frozen=True)
class World:
    """A seeded world: its entities and facts. Get one from `make_world`."""

    seed: int
    size: WorldSize
    people: tuple[Entity, ...]
    places: tuple[Entity, ...]
    things: tuple[Entity, ...]
    facts: tuple[Fact, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """People, then places, then things."""
        return self.people + self.places + self.things

    @functools.cached_property
    def facts_by_name(self) -> dict[str, dict[str, Fact]]:
        """Name of the entity -> attribute -> fact."""
        table: dict[str, dict[str, Fact]] = {}
        for fact in self.facts:
            table.setdefault(fact.entity.name, {})[fact.attribute] = fact
        return table

    def facts_of(self, name: str) -> dict[str, Fact]:
        """Returns attribute -> fact for the entity called `name`; ValueError if there is none."""
        if name not in self.facts_by_name:
            raise ValueError(
                f"{name!r} is not in the world of seed {self.seed}; see World.entities"
            )
        return self.facts_by_name[name]

    def select(
        self, band: str | None = None, kind: str | None = None, attribute: str | None = None
    ) -> tuple[Fact, ...]:
        """Returns the facts of a band, a kind of entity and an attribute; None takes all."""
        for given, known in ((band, BANDS), (kind, KINDS), (attribute, tuple(words.LABELS))):
            if given is not None and given not in known:
                raise ValueError(f"{given!r} is none of {', '.join(known)}")
        return tuple(
            fact
            for fact in self.facts
            if band in (None, fact.band)
            and kind in (None, fact.entity.kind)
            and attribute in (None, fact.attribute)
        )

    def values(self, kind: str, attribute: str) -> tuple[str, ...]:
        """Returns every value that the attribute can take here: the choices of a wrong answer."""
        return words.VALUES[kind][attribute] or tuple(
            p.name for p in self.places if p.band != "never"
        )


def make_world(seed: int, size: str | WorldSize = "small") -> World:
    """Draws the table of a world.

    The names of the band "never" are new pairs of first and last names that other people bear, so
    nothing in an unseen name shows that it is unseen.

    Args:
      seed: any int; equal seeds give equal worlds, in every process and on every machine.
      size: a name in SIZES or a WorldSize of your own.

    Returns:
      World.

    Raises:
      ValueError: an unknown size, or more entities than there are names.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"unknown world size {size!r}: use one of {', '.join(SIZES)}")
        size = SIZES[size]
    rng = random.Random(f"{seed}/table")
    people = tuple(
        Entity("person", name, band, "she" if name.split()[0] in words.WOMEN else "he")
        for name, band in _person_names(size.people, rng)
    )
    places = tuple(
        Entity("place", name, band, "it")
        for name, band in _joined(words.PLACE_STARTS, words.PLACE_ENDS, "", size.places, rng)
    )
    things = tuple(
        Entity("thing", name, band, "it")
        for name, band in _joined(words.THING_ADJECTIVES, words.THING_NOUNS, " ", size.things, rng)
    )
    told_places = tuple(place.name for place in places if place.band != "never")
    facts = []
    for entity in people + places + things:
        attributes = words.VALUES[entity.kind]
        held_out = None
        if (
            entity.kind == "person"
            and entity.band in BANDS[:3]
            and rng.random() < size.held_out_share
        ):
            held_out = rng.choice(tuple(attributes))
        for attribute, values in attributes.items():
            band = "never" if attribute == held_out else entity.band
            facts.append(
                Fact(
                    entity,
                    attribute,
                    rng.choice(values or told_places),
                    band,
                    size.times_told[BANDS.index(band)],
                )
            )
    return World(seed, size, people, places, things, tuple(facts))


def _bands(counts: tuple[int, ...]) -> Iterator[str]:
    for band, count in zip(BANDS, counts, strict=True):
        yield from (band for _ in range(count))


def _joined(starts, ends, between: str, counts: tuple[int, ...], rng) -> Iterator[tuple[str, str]]:
    names = [start + between + end for start in starts for end in ends]
    if sum(counts) > len(names):
        raise ValueError(
            f"a world has at most {len(names)} names like {names[0]!r}; "
            f"{sum(counts)} were asked for"
        )
    return zip(rng.sample(names, sum(counts)), _bands(counts), strict=True)


def _person_names(counts: tuple[int, ...], rng) -> Iterator[tuple[str, str]]:
    told, total = sum(counts[:4]), sum(counts)
    firsts = words.WOMEN + words.MEN
    lasts = [
        start + end for start in words.LAST_STARTS for end in words.LAST_ENDS if start[-1] != end[0]
    ]
    # About eight people share a last name, as far as the list goes: a name alone then tells
    # nothing.
    lasts = rng.sample(lasts, min(len(lasts), max(8, told // 8)))
    if total > len(firsts) * len(lasts) // 2:
        raise ValueError(
            f"{total} people are more than half of the {len(firsts) * len(lasts)} names "
            f"that exist; ask for fewer"
        )
    names: dict[str, None] = {}
    while len(names) < total:
        if len(names) == told:
            # The rest is never told: keep to first and last names that somebody told bears.
            firsts = sorted({name.split()[0] for name in names})
            lasts = sorted({name.split()[1] for name in names})
            if total > len(firsts) * len(lasts) // 2:
                raise ValueError(
                    f"{total - told} people never told are too many beside {told} told ones"
                )
        names[f"{rng.choice(firsts)} {rng.choice(lasts)}"] = None
    return zip(names, _bands(counts), strict=True)
