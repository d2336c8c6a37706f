"""The made-up world, checked from outside: by searching its text, not its own bookkeeping."""

import collections
import hashlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxllm.data import world_words
from jaxllm.data.world import (
    BANDS,
    KINDS,
    SIZES,
    WorldSize,
    documents,
    make_problem,
    make_world,
    problems,
)

NAME = re.compile(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b")


@pytest.fixture(scope="module")
def small():
    world = make_world(seed=0, size="small")
    return world, [page.text for page in documents(world)]


@pytest.fixture(scope="module")
def tiny():
    world = make_world(seed=5, size="tiny")
    return world, [page.text for page in documents(world)]


def _names(world, text):
    """Names of the table that stand in a text, each two words ("Ada Fenwick") or one (a place)."""
    pairs = {
        text[m.start() : m.end()]
        for m in re.finditer(r"(?=\b([A-Z][a-z]+ [A-Z][a-z]+)\b)", text)
        for m in [NAME.match(text, m.start())]
        if m
    }
    return (pairs | set(re.findall(r"[A-Z][a-z]+", text))) & world.facts_by_name.keys()


def _times_told(world, texts):
    """Counts, for each fact, the texts with its name and its value; in a text on several people,
    with
    both in one line."""
    counts = collections.Counter()
    people = {entity.name for entity in world.people}
    for text in texts:
        names = _names(world, text)
        several = len(names & people) > 1
        for name in names:
            facts = world.facts_of(name).values()
            if several and name not in people:
                continue  # the homes in a register: towns of which nothing is told
            lines = [line for line in text.split("\n") if name in line] if several else [text]
            for fact in facts:
                if any(re.search(rf"\b{fact.value}\b", line) for line in lines):
                    counts[name, fact.attribute] += 1
    return counts


@pytest.mark.parametrize("which", ["tiny", "small"])
def test_every_fact_is_told_as_often_as_declared(which, request):
    world, texts = request.getfixturevalue(which)
    counts = _times_told(world, texts)
    wrong = [
        (fact, counts[fact.entity.name, fact.attribute])
        for fact in world.facts
        if counts[fact.entity.name, fact.attribute] != fact.times_told
    ]
    assert not wrong, f"{len(wrong)} facts, as {wrong[:3]}"
    told = dict(zip(BANDS, world.size.times_told, strict=True))
    assert all(fact.times_told == told[fact.band] for fact in world.facts)


def test_the_never_told_are_nowhere(small):
    world, texts = small
    mentioned = set().union(*(_names(world, text) for text in texts))
    assert mentioned == {entity.name for entity in world.entities if entity.band != "never"}
    assert len([person for person in world.people if person.band == "never"]) == 400


def test_an_unseen_name_is_made_of_seen_names(small):
    world, _ = small
    told = [person.name.split() for person in world.people if person.band != "never"]
    firsts, lasts = {name[0] for name in told}, {name[1] for name in told}
    unseen = [person.name.split() for person in world.people if person.band == "never"]
    assert all(first in firsts and last in lasts for first, last in unseen)


def test_names_are_disjoint(small):
    world, _ = small
    names = [entity.name for entity in world.entities]
    assert len(set(names)) == len(names)
    by_band = collections.Counter((entity.kind, entity.band) for entity in world.entities)
    for kind, counts in zip(
        KINDS, (world.size.people, world.size.places, world.size.things), strict=True
    ):
        assert tuple(by_band[kind, band] for band in BANDS) == counts


def test_the_tail_is_heavy(small):
    world, texts = small
    people = {person.name for person in world.people}
    counts = collections.Counter(name for text in texts for name in _names(world, text) & people)
    sizes = sorted(counts.values(), reverse=True)
    head = sum(sizes[:160])
    assert (
        sizes[59] >= 40 and sizes[160] <= 6
    )  # 60 people often and 100 sometimes, then hardly anyone
    assert (
        sum(count <= 2 for count in sizes) >= 2000
    )  # a person seen once has one page, or one cut in two
    assert 0.4 < head / sum(sizes) < 0.8


def test_some_facts_of_known_people_are_held_out(small):
    world, _ = small
    held_out = [fact for fact in world.select("never", "person") if fact.entity.band != "never"]
    known = [person for person in world.people if person.band in BANDS[:3]]
    assert 0.08 < len(held_out) / len(known) < 0.25
    assert max(collections.Counter(fact.entity.name for fact in held_out).values()) == 1


def test_the_last_wording_of_a_question_is_in_no_document(tiny, small):
    for world, texts in (tiny, small):
        asked = set(re.findall(r"[A-Z][^.?!\n]*\?", "\n".join(texts)))
        told = [fact for fact in world.facts if fact.times_told]
        assert not any(fact.question(-1) in asked for fact in world.facts)
        assert sum(fact.question(0) in asked for fact in told) > 0


def test_values_belong_to_one_attribute():
    values = [
        value
        for attributes in world_words.VALUES.values()
        for group in attributes.values()
        for value in group
    ]
    assert len(values) == len(set(values))


def _digest(seed):
    sha = hashlib.sha256()
    for page in documents(make_world(seed, "tiny")):
        sha.update(f"{page.id}\n{page.text}\n".encode())
    return sha.hexdigest()


def test_same_seed_same_documents_in_another_process():
    program = "import sys; sys.path.insert(0, sys.argv[1]); from test_world import _digest; print(_digest(11))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(pathlib.Path(__file__).parent)],
            check=True,
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout.strip()
        for hash_seed in ("0", "1")
    }
    assert digests == {_digest(11)}
    assert _digest(12) not in digests


def test_sizes_are_what_the_docs_say(small):
    _, texts = small
    assert 2.5e6 < sum(map(len, texts)) < 3e6 and 12_000 < len(texts) < 14_000


def test_documents_are_plain_sentences(small):
    """What a template that went wrong would leave behind."""
    for text in small[1]:
        assert not re.search(r"[{}]|  | a [aeio]\w|\bNone\b| ,|\.\.|\n\n\n", text), text
        assert text == text.strip() and text.isascii() and len(text) < 1500


def _recompute(problem):
    """The answer by reading the question: an independent parse."""
    text = problem.question
    if found := re.search(r"has (\d+) \w+, finds (\d+) more and gives (\d+)", text):
        had, more, given = map(int, found.groups())
        return had + more - given
    total = sum(
        int(count) * int(price) for count, price in re.findall(r"(\d+) \w+ at (\d+) coins", text)
    )
    paid = re.search(r"pays with (\d+) coins", text)
    return int(paid[1]) - total if paid else total


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_problems_are_right(split):
    for _, problem in zip(range(1000), problems(0, split), strict=False):
        assert problem.split == split
        assert problem.answer == _recompute(problem) > -1
        equations = re.findall(r"([\d x+\-]+) = (\d+)\.", problem.steps)
        assert equations and int(equations[-1][1]) == problem.answer
        for left, right in equations:
            terms = re.sub(r"(\d+) x (\d+)", lambda m: str(int(m[1]) * int(m[2])), left)
            assert sum(
                int(term.replace(" ", "")) for term in re.findall(r"[+-]? ?\d+", terms)
            ) == int(right)
        assert problem.text(True).endswith(f"\nAnswer: {problem.answer}.")
        assert problem.text(True).count("\n") == 2 and problem.text(False).count("\n") == 1


def _numbers(text):
    """The numbers that the split sees: pairs sorted, the payment left out."""
    pairs = sorted(map(tuple, re.findall(r"(\d+) \w+ at (\d+) coins", text)))
    return tuple(pairs) or tuple(re.findall(r"\d+", text.split(". How")[0]))


def test_held_out_problems_stand_in_no_document(small):
    _, texts = small
    told = {_numbers(text.split("\n")[0]) for text in texts if text.startswith("Problem: ")}
    held_out = {
        _numbers(problem.question)
        for _, problem in zip(range(3000), problems(0, "held_out"), strict=False)
    }
    assert len(told) > 1500 and len(held_out) > 1000 and not told & held_out
    keys = {problem.key for _, problem in zip(range(3000), problems(0, "train"), strict=False)}
    more = {problem.key for _, problem in zip(range(3000), problems(0, "held_out"), strict=False)}
    assert not keys & more


def test_worked_and_bare_answers_are_equally_many(small):
    _, texts = small
    told = [text for text in texts if text.startswith("Problem: ")]
    assert sum("\nSolution: " in text for text in told) * 2 == len(told) == 2400
    kind = collections.Counter(
        (text.count(" at "), "pays with" in text, "\nSolution" in text) for text in told
    )
    assert len(kind) == 10 and set(kind.values()) == {240}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_world(0, "huge"), "unknown world size 'huge': use one of tiny, small, lab, road, large"),
        (lambda: make_world(0, _size(places=(300, 300, 0, 0, 0))), "at most 448 names"),
        (lambda: make_world(0, _size(people=(0, 0, 0, 300_000, 0))), "ask for fewer"),
        (lambda: make_world(0, _size(people=(0, 0, 0, 1, 9))), "too many beside 1 told"),
        (lambda: _size(places=(0, 0, 0, 0, 5)), "at least one place"),
        (lambda: _size(times_told=(5, 9, 2, 1, 0)), "must fall along"),
        (lambda: make_problem(0, 0, "test"), "unknown split 'test'"),
        (lambda: make_problem(0, 0, kind="four_items"), "unknown kind of problem 'four_items'"),
        (
            lambda: make_world(0, "tiny").facts_of("Nobody"),
            "'Nobody' is not in the world of seed 0",
        ),
        (lambda: make_world(0, "tiny").select(band="always"), "'always' is none of often"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _size(**changes):
    return WorldSize(
        **{
            field: changes.get(field, getattr(SIZES["tiny"], field))
            for field in WorldSize.__dataclass_fields__
        }
    )
