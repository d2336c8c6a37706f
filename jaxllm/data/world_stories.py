"""Stories and lists of the made-up world: pages that speak of nobody in its table.

The lists are drawn afresh each time, so that nothing but the page itself can answer the questions
under it, and the parrots repeat what they hear: chances to learn to copy from the context.
"""

import random
import re

from jaxllm.data import world_words as words

_ANIMALS = tuple(
    "fox bear mouse squirrel badger otter robin cat dog lamb hen wolf crow mole toad bee".split()
)
_OBJECTS = tuple(
    """kite button spoon lamp boat key hat drum basket bell whistle blanket ribbon
teapot marble ball book bucket shell ring""".split()
)
_SPOTS = tuple(
    """the old oak|the garden wall|the stone bridge|the mill|the pond|the hill|the
barn|the river bank|the long hedge|the forest path|the stable|the quiet meadow""".replace(
        "\n", " "
    ).split("|")
)
_COLOURS = tuple("red blue green yellow white black brown grey orange purple pink".split())
_MOODS = tuple("happy proud tired hungry cold brave sleepy cheerful curious patient".split())
_FOODS = tuple("""bread soup pie jam toast berries nuts porridge pancakes cake""".split())
_SYLLABLES = tuple(
    """ba be bo da di do fa fe fi gu ja jo ko la le lo ma mi mo na ne no pa po ra ri
ro sa se so ta te to va vi vo za zo""".split()
)

# Each plot is a list of beats and each beat a choice of wordings. {n} the child, {f} a friend, {a}
# {b} animals, {o} a thing, {c} its colour, {s} {t} places, {m} a mood, {e} food.
_PLOTS = (
    (
        (
            "Once upon a time there was a child called {n}.",
            "In a small house near {s} lived a child called {n}.",
            "One morning {n} woke up very early.",
        ),
        (
            "{n} had a {c} {o} and took it everywhere.",
            "The best thing that {n} had was a {c} {o}.",
            "For a birthday {n} was given a {c} {o}.",
        ),
        (
            "One day the {o} was gone.",
            "But after lunch the {o} could not be found.",
            "Then the wind came, and the {c} {o} was lost.",
        ),
        (
            "{n} looked under the bed and behind the door.",
            "{n} looked in every room, but it was not there.",
            '"Where is my {o}?" said {n}.',
        ),
        (
            'Near {s} {n} met a {a}. "Have you seen my {c} {o}?" asked {n}.',
            'A {a} sat near {s}. "Why are you sad?" asked the {a}. "I have lost my {o}," said {n}.',
        ),
        (
            '"I saw a {c} {o} near {t}," said the {a}. "Come with me."',
            '"Let us look near {t}," said the {a}, and they went together.',
        ),
        (
            "And there it was! The {c} {o} lay near {t}.",
            "Near {t} they found the {o}, a little wet but whole.",
        ),
        (
            "{n} thanked the {a} and shared some {e} with it.",
            '"Thank you," said {n}. They ate {e} and laughed.',
        ),
        (
            "From that day {n} and the {a} were friends.",
            "That night {n} slept with the {o} under the pillow.",
            "{n} was {m} all the way home.",
        ),
    ),
    (
        (
            "A {a} and a {b} lived near {s}.",
            "Near {s} there lived a {a} who was always {m}, and a {b}.",
        ),
        (
            "The {a} was fast and the {b} was slow.",
            "The {a} was loud and the {b} was quiet.",
            "The {a} liked the sun and the {b} liked the rain.",
        ),
        ("One day they found a {c} {o}.", "One day a {c} {o} came down the river."),
        (
            '"It is mine," said the {a}. "No, it is mine," said the {b}.',
            '"I saw the {o} first," said the {a}. "I saw it first," said the {b}.',
        ),
        (
            "They pulled and pulled until they fell into the mud.",
            "They shouted so long that the birds flew away from {t}.",
            "All day they sat with their backs to each other.",
        ),
        (
            'Then {n} came by. "What is a {o} for?" asked {n}.',
            "Then {n} came along the path and heard the noise.",
        ),
        (
            '"Today it is for the {a} and tomorrow for the {b}," said {n}.',
            '"Two can have a {o}," said {n}, "if one holds it and the other sings."',
        ),
        (
            "So they did, and it was better than before.",
            "The {a} looked at the {b}, and both began to laugh.",
        ),
        (
            "In the evening they ate {e} together.",
            "Since then the {c} {o} stands near {t}, and it belongs to both.",
        ),
    ),
    (
        (
            "It had rained for three days near {s}.",
            "Dark clouds stood over {s}.",
            "The night was cold and wet.",
        ),
        ("{n} sat by the fire and ate {e}.", "{n} and {f} were at home and were a little afraid."),
        ("Then there was a knock at the door.", "Then they heard a small voice outside."),
        ("It was a {a}, wet from head to foot.", "A {a} stood there and was very cold."),
        (
            '"May I come in?" asked the {a}. "My house near {t} is full of water."',
            '"Please," said the {a}, "is there room for one more?"',
        ),
        (
            '"Come in," said {n}, and gave the {a} a {c} blanket and some {e}.',
            "{n} opened the door and put the {a} next to the fire.",
        ),
        (
            "Soon there was another knock. This time it was a {b}.",
            "After a while a {b} came too, and it was wet as well.",
        ),
        (
            "In the end there was no chair left, but nobody minded.",
            "They sat close together and told each other stories.",
        ),
        (
            "In the morning the sun shone, and the {a} and the {b} went home.",
            "When the rain ended, they all went to mend the house near {t}.",
        ),
        (
            '"A small house is large enough for friends," said {n}.',
            "{n} was {m} and left the door open.",
        ),
    ),
    (
        (
            "{n} wanted to learn to swim.",
            "{n} wanted to jump over the brook near {s}.",
            "{n} wanted to bake a cake for {f}.",
        ),
        ("{n} asked two friends to help, a {a} and a {b}.", "A {a} and a {b} came to watch."),
        ("The first time it did not work at all.", '"That is too hard for you," said the {a}.'),
        (
            "The second time it was a little better.",
            '"Try again," said the {b}. "I will stay with you."',
        ),
        (
            "{n} was {m}, but did not stop.",
            "{n} sat down near {t} and thought about it.",
            "{n} ate some {e} and tried once more.",
        ),
        ("The third time it worked!", "And on the third day it worked."),
        ('"Look, {f}!" called {n}.', "{f} came running and could not believe it."),
        (
            'The {a} said, "I was wrong." The {b} said nothing and smiled.',
            '"I knew that you could do it," said the {b}.',
        ),
        (
            "Who tries three times learns more than who never tries.",
            "And if you ask {n}, it was never hard at all.",
        ),
    ),
)


def story(rng: random.Random) -> str:
    """Returns a tale for children of 5 to 12 sentences in two or three paragraphs."""
    name, friend = rng.sample(words.WOMEN + words.MEN, 2)
    animal, other = rng.sample(_ANIMALS, 2)
    spot, second = rng.sample(_SPOTS, 2)
    slots = dict(
        n=name,
        f=friend,
        a=animal,
        b=other,
        s=spot,
        t=second,
        o=rng.choice(_OBJECTS),
        c=rng.choice(_COLOURS),
        m=rng.choice(_MOODS),
        e=rng.choice(_FOODS),
    )
    beats = [rng.choice(beat).format(**slots) for beat in rng.choice(_PLOTS)]
    cut = rng.randint(2, 3)
    parts = [" ".join(beats[:cut]), " ".join(beats[cut:-2]), " ".join(beats[-2:])]
    title = rng.choice((f"{name} and the {animal}", f"The {animal}", f"A story about {name}", ""))
    text = "\n\n".join(part for part in [title, *parts] if part)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def shelves(rng: random.Random) -> str:
    """Returns a list of things and their places, with questions that only this list answers."""
    title, left, right, question = rng.choice(
        (
            (
                "Lost and found",
                [f"{c} {o}" for c in _COLOURS[:6] for o in _OBJECTS],
                [f"shelf {n}" for n in range(1, 30)],
                "Where is the {k}?",
            ),
            (
                "Coat pegs",
                list(words.WOMEN + words.MEN),
                [f"peg {n}" for n in range(1, 30)],
                "Where does {k} hang a coat?",
            ),
            (
                "Prices at the stall",
                list(_FOODS + _OBJECTS),
                [f"{n} coins" for n in range(2, 40)],
                "What is the price of the {k}?",
            ),
            (
                "What each child brought",
                list(words.WOMEN + words.MEN),
                [f"a {c} {o}" for c in _COLOURS[:6] for o in _OBJECTS],
                "What did {k} bring?",
            ),
            (
                "Secret words of the club",
                list(words.WOMEN + words.MEN),
                [_invented(rng) for _ in range(12)],
                "What is the secret word of {k}?",
            ),
        )
    )
    rows = list(zip(rng.sample(left, 6), rng.sample(right, 6), strict=True))[: rng.randint(4, 6)]
    listed = [f"{key}: {value}" for key, value in rows]
    asked = [
        f"Q: {question.format(k=key)}\nA: {value}."
        for key, value in rng.sample(rows, rng.randint(3, 4))
    ]
    return "\n".join([title, "", *listed, "", *asked])


def parrot(rng: random.Random) -> str:
    """Returns a scene with a parrot that repeats, word for word, what it hears."""
    name = rng.choice(words.WOMEN + words.MEN)
    lines = [
        rng.choice(
            (
                f"{name} has a parrot that repeats every word.",
                f"{name} talks to the parrot.",
                "The parrot says everything twice.",
            )
        )
    ]
    nouns = [
        lambda: rng.choice(_OBJECTS + _ANIMALS + _FOODS),
        lambda: _invented(rng),
        lambda: f"{rng.choice(_COLOURS)} {rng.choice(_OBJECTS)}",
        lambda: str(rng.randint(1, 99)),
    ]
    for _ in range(rng.randint(3, 4)):
        draw = rng.choice(nouns)
        said = " ".join(draw() for _ in range(rng.randint(3, 6)))
        lines.append(f"{name}: {said}\nParrot: {said}")
    return "\n".join(lines)


def _invented(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))
