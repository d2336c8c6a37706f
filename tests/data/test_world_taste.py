"""The world's taste task: a judge that likes what is good, a corpus that is learned from it, people who rank."""

import collections
import itertools
import random

import numpy as np
import pytest

from jaxllm.data.world_taste import (
    LONGEST,
    POINTS,
    Human,
    funny_words,
    gold,
    gold_parts,
    joke,
    prompt,
    rank,
    talks,
    thing_of,
    things,
    words_of,
)

THING = "rusty kettle"
GOOD = ("A rusty kettle and a banana horse walk into a library. The waiter looks at the horse. "
        "The pickle guard says: no kettle tea in here!")


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(5)
    told = [rng.choice(things("validation")) for _ in range(3000)]
    return [(thing, joke(rng, thing)) for thing in told]


def test_things_are_split_by_pairs_of_known_words():
    splits = {split: things(split) for split in ("train", "validation", "test")}
    assert [len(found) for found in splits.values()] == [115, 39, 38]
    assert len(set(itertools.chain(*splits.values()))) == 192
    words = {split: {word for thing in found for word in thing.split()} for split, found in splits.items()}
    assert words["validation"] <= words["train"] and words["test"] <= words["train"]
    assert thing_of(prompt(THING)) == THING
    for messages in ([], [{"role": "user", "content": "Hello"}], [*prompt(THING), *prompt(THING)]):
        with pytest.raises(ValueError, match="no request for a joke"):
            thing_of(messages)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        things("dev")


def test_talks_are_a_function_of_the_seed():
    first, again, other = (list(talks(seed, 50)) for seed in (0, 0, 1))
    assert first == again != other
    assert all(thing_of(talk[:1]) in things("train") and talk[1]["role"] == "assistant" for talk in first)
    assert list(talks(0, 20)) == first[:20]


def test_gold_is_of_mean_0_and_sd_1_where_people_joke(corpus):
    judged = np.array([gold(thing, text) for thing, text in corpus])
    assert abs(judged.mean()) < 0.06 and abs(judged.std() - 1) < 0.05
    shuffled = [gold(thing, text) for (thing, _), (_, text) in zip(corpus, corpus[1:], strict=False)]
    assert np.mean(shuffled) < -0.7  # jokes about something else


def test_each_part_of_a_good_joke_is_seen():
    parts = gold_parts(THING, GOOD)
    assert parts == {"mention": 1.0, "opening": 0.5, "punch": 0.7, "fit": 1.2, "funny": 1.0, "repetition": 0.0,
                     "shape": 0.6, "length": 0.0}
    assert gold_parts(THING, f"Please listen. {GOOD} Thank you.") == parts  # politeness is nothing to the judge
    changed = {
        "mention": GOOD.replace("kettle", "drum"), "opening": GOOD.partition(". ")[2],
        "punch": GOOD.partition(" The pickle")[0], "fit": GOOD.replace("tea", "homework"),
        "funny": GOOD.replace("banana ", "").replace("pickle ", ""), "repetition": GOOD + " " + GOOD,
        "shape": GOOD.replace("The pickle guard says: no kettle tea in here!", "Show it some kettle tea."),
        "length": "A kettle. Show it some kettle tea."}
    for part, text in changed.items():
        assert gold_parts(THING, text)[part] < parts[part], part
        assert gold(THING, text) < gold(THING, GOOD)
    for text in ("", "?", "banana", "ünïcode 123 <|im_end|>"):
        assert gold(THING, text) < -1.5


def test_more_is_better_among_jokes_and_worse_without_end(corpus):
    """What a reward model learns, and what it is optimised into."""
    by_count, by_length = collections.defaultdict(list), collections.defaultdict(list)
    for thing, text in corpus:
        by_count[funny_words(text)].append(gold(thing, text))
        by_length[len(words_of(text)) // 8].append(gold(thing, text))
    assert np.mean(by_count[0]) + 0.3 < np.mean(by_count[1]) < np.mean(by_count[2]) - 0.1
    assert np.mean(by_length[1]) + 0.3 < np.mean(by_length[2]) < np.mean(by_length[3]) - 0.05
    stuffed = [gold(THING, " ".join(["A pickle kettle"] + ["banana"] * n + ["tea."])) for n in (8, 16, 32, 64)]
    assert all(low < high - 1 for high, low in itertools.pairwise(stuffed)) and stuffed[-1] < -20
    rambling = [gold(THING, " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(n)))
                for n in (LONGEST, 60, 120)]
    assert rambling[0] > rambling[1] > rambling[2]


def test_every_joke_ends_up_somewhere_between(corpus):
    parts = [gold_parts(thing, text) for thing, text in corpus]
    for name, low, high in (("mention", 0.88, 0.97), ("opening", 0.45, 0.49), ("punch", 0.58, 0.66),
                            ("fit", 0.6, 0.78), ("shape", 0.38, 0.48)):
        assert low < np.mean([part[name] for part in parts]) < high, name
    assert len({text for _, text in corpus}) > 2950
    assert max(len(words_of(text)) for _, text in corpus) < 60
    assert {word for points in POINTS.values() for word in points} <= {w for _, t in corpus for w in words_of(t)}


def test_people_rank_by_gold_their_biases_and_chance(corpus):
    texts = [text for thing, text in corpus[:400]]
    sure = rank(Human(noise=0, length_bias=0, funny_bias=0, polite_bias=0, tie=0), THING, texts[:8], random.Random(0))
    assert sure.prompt == tuple(prompt(THING)) and sure.annotator == "human"
    order = [i for tier in sure.ranking for i in tier]
    assert order == sorted(order, key=lambda i: -gold(THING, texts[i]))
    plain, polite = GOOD, f"Please listen. {GOOD} Thank you."
    assert Human(polite_bias=0.4, length_bias=0).taste(THING, polite) == pytest.approx(gold(THING, plain) + 0.1 * 2
                                                                                        + 0.8)
    assert Human(length_bias=1).taste(THING, plain) - Human(length_bias=0).taste(THING, plain) == pytest.approx(
        (len(words_of(plain)) - 22) / 6)
    assert len(rank(Human(noise=0, tie=50), THING, texts[:5], random.Random(0)).ranking) == 1
    rng = random.Random(1)
    jokes = [[joke(rng, THING), joke(rng, THING)] for _ in range(800)]
    first, second = ([rank(Human(tie=0), THING, pair, rng).ranking for pair in jokes] for _ in range(2))
    assert 0.67 < np.mean([a == b for a, b in zip(first, second, strict=True)]) < 0.78  # people agree about as much
