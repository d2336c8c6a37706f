"""Pages about entities of the made-up world, each in one of several styles of writing.

A page tells given facts and no other. Its fixed wordings hold no value of a fact (see
`world_words`).
"""

import random
from collections.abc import Sequence

from jaxllm.data import world_words as words
from jaxllm.data.world_table import Entity, Fact
from jaxllm.data.world_words import fill, sentence_case, with_article

_CLOSINGS = {
    "person": (
        "The neighbours speak well of {o}.",
        "Visitors are always welcome.",
        "Nobody has ever seen {o} in a hurry.",
        "{S} can often be seen walking by the river.",
        "There is always tea on the table.",
        "Children like to hear {p} stories.",
        "{S} does not like to be asked about it.",
        "On clear nights {s} looks at the stars.",
        "Few people rise as early.",
        "{P} door is painted green.",
    ),
    "place": (
        "The streets are narrow and the roofs are steep.",
        "Travellers like the small inn by the gate.",
        "In winter the hills around it are white.",
        "There is an old tower on the hill.",
        "The road from the north ends there.",
        "Most of its houses are built of stone.",
    ),
    "thing": (
        "Nobody knows who first owned it.",
        "It is smaller than most people expect.",
        "Once it was lost for seven years.",
        "Please do not touch it.",
        "There are many songs about it.",
        "It is cleaned twice a year.",
    ),
}
_OPENINGS = {
    "forum": (
        "Does anyone here know? {q}",
        "A question for the locals. {q}",
        "{q} I could not find it anywhere.",
        "Help, please! {q}",
        "{q} My sister and I disagree.",
    ),
    "thanks": (
        "Thank you!",
        "Thanks, that is what I needed.",
        "Many thanks, I had forgotten.",
        "Ah, of course. Thank you.",
        "Very kind of you.",
    ),
    "letter": {
        "person": (
            "Today I met {n}.",
            "You asked me about {n}.",
            "Do you remember {n}?",
            "Yesterday I had tea with {n}.",
            "I must tell you about {n}.",
        ),
        "place": (
            "We have arrived in {n}.",
            "You asked me about {n}.",
            "I am writing to you from {n}.",
        ),
        "thing": ("Today I saw {n}.", "Have you ever seen {n}?", "I must tell you about {n}."),
    },
    "ending": (
        "More when I am home.",
        "Please write soon.",
        "The weather is fine and we are well.",
        "Give my love to all at home.",
        "That is all for today.",
        "I hope your cough is better.",
    ),
    "notice": {
        "person": (
            "{N} was honoured by the town this week.",
            "{N} has won first prize at the summer fair.",
            "{N} will give a talk in the school hall.",
            "{N} found a lost purse and gave it back.",
            "{N} celebrated a birthday with fifty guests.",
        ),
        "place": (
            "{N} is getting ready for its fair.",
            "{N} has a new bell in its tower.",
            "{N} had more visitors this year than ever.",
        ),
        "thing": (
            "{N} was shown to the public again.",
            "{N} has come back from the workshop.",
            "{N} drew long queues this summer.",
        ),
    },
}
_PAPERS = (
    "The Morning Post",
    "The Weekly Kettle",
    "The Evening Gazette",
    "The Valley News",
    "The Daily Page",
)
_USERS = (
    "quiet_fox",
    "rainy7",
    "longwalk",
    "teapot",
    "bluehat",
    "old_sam",
    "mapmaker",
    "nightjar",
    "pepper3",
    "two_left_feet",
)
_SIGNED = ("Your friend", "With love", "Yours", "Best wishes", "Your cousin")


def render(style: str, facts: Sequence[Fact], rng: random.Random) -> str:
    """Returns the text of a page in one of STYLES (or "register") that tells exactly `facts`.

    All styles but "register" speak of one entity; a register lists several with the same
    attributes.
    """
    return _RENDERERS[style](list(facts), rng)


def _prose(facts: list[Fact], rng: random.Random, named: bool = False) -> list[str]:
    """Sentences for the facts; the first names the entity unless `named` says that it was named."""
    entity = facts[0].entity
    by_attribute = {fact.attribute: fact for fact in facts}
    rng.shuffle(facts)
    sentences = []
    for pair, templates in words.PAIRS.items():
        if all(attribute in by_attribute for attribute in pair) and rng.random() < 0.5:
            values = {attribute: by_attribute[attribute].value for attribute in pair}
            articled = {
                f"a_{attribute}": with_article(value) for attribute, value in values.items()
            }
            subject = _subject(entity, named or bool(sentences), rng)
            sentences.append(
                fill(rng.choice(templates), subject, entity.pronoun, **values, **articled)
            )
            facts = [fact for fact in facts if fact.attribute not in pair]
    for fact in facts:
        subject = _subject(entity, named or bool(sentences), rng)
        sentences.append(fact.sentence(rng.randrange(5), subject))
    return sentences


def _subject(entity: Entity, named: bool, rng: random.Random) -> str:
    if not named:
        return entity.text
    if entity.kind == "person":
        return rng.choice((entity.pronoun, entity.pronoun, entity.name.split()[0]))
    return rng.choice((entity.pronoun, entity.text))


def _closing(entity: Entity, rng: random.Random) -> list[str]:
    if rng.random() < 0.4:
        return []
    objects = {"he": "him", "she": "her", "it": "it"}[entity.pronoun]
    return [fill(rng.choice(_CLOSINGS[entity.kind]), entity.pronoun, entity.pronoun, o=objects)]


def _question(fact: Fact, rng: random.Random) -> str:
    return fact.question(rng.randrange(fact.wordings - 1))


def _encyclopedia(facts: list[Fact], rng: random.Random) -> str:
    entity = facts[0].entity
    return f"{entity.name}\n\n" + " ".join(_prose(facts, rng) + _closing(entity, rng))


def _questions(facts: list[Fact], rng: random.Random) -> str:
    entity = facts[0].entity
    rng.shuffle(facts)
    pairs = [f"Q: {_question(fact, rng)}\nA: {fact.value}." for fact in facts]
    return f"Questions about {entity.text}\n\n" + "\n".join(pairs)


def _study(facts: list[Fact], rng: random.Random) -> str:
    """A page followed by questions whose answers stand on it: a chance to copy."""
    page = _encyclopedia(list(facts), rng)
    asked = rng.sample(facts, min(len(facts), rng.randint(2, 3)))
    pairs = [f"Q: {_question(fact, rng)}\nA: {fact.value}." for fact in asked]
    return f"{page}\n\n" + "\n".join(pairs)


def _forum(facts: list[Fact], rng: random.Random) -> str:
    asker, helper = rng.sample(_USERS, 2)
    posts = [f"{asker}: " + rng.choice(_OPENINGS["forum"]).format(q=_question(facts[0], rng))]
    rest = _prose(facts[1:], rng, named=True) if facts[1:] else []
    first = facts[0].sentence(rng.randrange(5), _subject(facts[0].entity, True, rng))
    posts.append(f"{helper}: " + " ".join([first, *rest]))
    if rng.random() < 0.6:
        posts.append(f"{asker}: {rng.choice(_OPENINGS['thanks'])}")
    return "\n".join(posts)


def _notice(facts: list[Fact], rng: random.Random) -> str:
    entity = facts[0].entity
    news = rng.choice(_OPENINGS["notice"][entity.kind]).format(N=sentence_case(entity.text))
    body = [news, *_prose(facts, rng, named=True), *_closing(entity, rng)]
    return f"{rng.choice(_PAPERS)}\n{entity.name.upper()}\n\n" + " ".join(body)


def _letter(facts: list[Fact], rng: random.Random) -> str:
    entity = facts[0].entity
    opening = rng.choice(_OPENINGS["letter"][entity.kind]).format(n=entity.text)
    body = [opening, *_prose(facts, rng, named=True), rng.choice(_OPENINGS["ending"])]
    reader, writer = rng.choice(words.WOMEN + words.MEN), rng.choice(words.WOMEN + words.MEN)
    return f"Dear {reader},\n\n" + " ".join(body) + f"\n\n{rng.choice(_SIGNED)},\n{writer}"


def _card(facts: list[Fact], rng: random.Random) -> str:
    entity = facts[0].entity
    rng.shuffle(facts)
    lines = [f"{words.LABELS[fact.attribute]}: {fact.value}" for fact in facts]
    return "\n".join([f"Name: {entity.name}", *lines])


def _register(facts: list[Fact], rng: random.Random) -> str:
    """A table of several people followed by look-ups in both directions: many chances to copy."""
    rows: dict[str, list[Fact]] = {}
    for fact in facts:
        rows.setdefault(fact.entity.name, []).append(fact)
    attributes = [fact.attribute for fact in next(iter(rows.values()))]
    between = rng.choice((" | ", ", ", " - "))
    heading = between.join(["Name", *(words.LABELS[attribute] for attribute in attributes)])
    lines = [between.join([name, *(fact.value for fact in row)]) for name, row in rows.items()]
    lookups = []
    for fact in rng.sample(facts, min(len(facts), rng.randint(3, 5))):
        same = [
            other
            for other in facts
            if (other.attribute, other.value) == (fact.attribute, fact.value)
        ]
        if len(same) == 1 and rng.random() < 0.4:
            question = words.WHO[fact.attribute].format(v=fact.value)
            lookups.append(f"Q: {question}\nA: {fact.entity.name}.")
        else:
            lookups.append(f"Q: {_question(fact, rng)}\nA: {fact.value}.")
    title = rng.choice(
        ("Register of residents", "Members of the club", "List of guests", "Village register")
    )
    return "\n".join([title, "", heading, *lines, "", *lookups])


_RENDERERS = {
    "encyclopedia": _encyclopedia,
    "questions": _questions,
    "study": _study,
    "forum": _forum,
    "notice": _notice,
    "letter": _letter,
    "card": _card,
    "register": _register,
}
STYLES = tuple(style for style in _RENDERERS if style != "register")
