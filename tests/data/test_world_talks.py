"""Conversations about the world: true, in the documents' tokens, never about what is held out, split by their topic."""

import collections
import re

import pytest

from jaxllm.data.chat import render
from jaxllm.data.conversations import split_conversations
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.world import documents, make_problem, make_world
from jaxllm.data.world_talks import chat_talks, fact_talk, fact_talks, problem_talks, world_conversations


@pytest.fixture(scope="module")
def world():
    return make_world(5, "tiny")


def turns(talk):
    """(question, reply) of each turn; fails where the roles do not take turns."""
    roles = [message["role"] for message in talk.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    texts = [message["content"] for message in talk.messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def known_answers(world):
    """Question in any wording but the held-out one -> value, of told facts: the table, read from outside."""
    return {fact.question(i): fact.value for fact in world.facts if fact.times_told for i in range(fact.wordings - 1)}


def test_replies_are_the_tokens_of_the_documents(world):
    texts = [page.text for page in documents(world)]
    tokenizer = train_tokenizer(texts, 600, "digits")
    for fact in world.facts[::7]:
        rendered = render(fact_talk(fact).messages, tokenizer, template="im_sep")
        counted = [id for id, counts in zip(rendered.ids, rendered.mask, strict=True) if counts]
        written = tokenizer.encode(f"Q: {fact.question()}\nA: {fact.value}.")
        assert counted[:-1] == written[-len(counted) + 1:] and len(counted) > 2, fact
        assert tokenizer.decode(written[:-len(counted) + 1]).endswith("\nA:")


def test_fact_talks_use_other_wordings_and_never_the_held_out_one(world):
    facts = world.select(kind="person", attribute="home")
    talks = fact_talks(facts, 1, wordings=2)
    asked = collections.Counter(question for talk in talks for question, _ in turns(talk))
    assert max(asked.values()) == 1 and len(asked) == 2 * len(facts)
    assert not asked.keys() & {fact.question(-1) for fact in facts}
    assert [turns(talk)[0][1] for talk in talks[::2]] == [f" {fact.value}." for fact in facts]
    used = collections.Counter(fact.question(i) in asked for fact in facts for i in range(3))
    assert used[True] == 2 * len(facts)
    assert fact_talks(facts, 1, wordings=2) == talks != fact_talks(facts, 2, wordings=2)
    thing = world.select(kind="thing")[:1]
    assert len(fact_talks(thing, 0, wordings=9)) == thing[0].wordings - 1
    with pytest.raises(ValueError, match="at least once"):
        fact_talks(facts, 0, wordings=0)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_problem_talks_end_with_the_answer(split):
    worked, bare = (problem_talks(3, 40, split, worked=worked) for worked in (True, False))
    for index, (long, short) in enumerate(zip(worked, bare, strict=True)):
        problem = make_problem(3, index, split)
        assert turns(long)[0][0] == turns(short)[0][0] == problem.question
        assert turns(short)[0][1] == f" {problem.answer}."
        assert turns(long)[0][1] == f" {problem.steps}\nAnswer: {problem.answer}."
        assert eval(re.findall(r"([\d x+\-]+) = ", problem.steps)[-1].replace("x", "*")) == problem.answer


def test_chats_tell_the_truth_about_one_told_entity(world):
    talks = chat_talks(world, 0, 300)
    answers, bands = known_answers(world), collections.Counter()
    kinds = collections.Counter()
    for talk in talks:
        facts = [(question, reply) for question, reply in turns(talk) if question in answers]
        assert facts and all(reply == f" {answers[question]}." for question, reply in facts)
        name = talk.origin
        assert all(name in question for question, _ in facts)
        bands[next(entity.band for entity in world.entities if entity.name == name)] += 1
        rest = [question for question, _ in turns(talk) if question not in answers]
        kinds.update("problem" if "How many" in question else "small talk" for question in rest)
        assert len(turns(talk)) <= 7
    assert set(bands) == {"often", "sometimes", "rare", "once"} and min(bands.values()) > 45
    assert 60 < kinds["problem"] < 120 and 240 < kinds["small talk"] < 360
    assert talks == chat_talks(world, 0, 300)
    often = chat_talks(world, 0, 20, bands=("often",))
    assert {fact.band for talk in often for fact in world.facts_of(talk.origin).values()} <= {"often", "never"}
    with pytest.raises(ValueError, match="no entity of the bands never"):
        chat_talks(world, 0, 1, bands=("never",))


def test_a_world_as_a_source_asks_nothing_that_is_never_told():
    talks = world_conversations("world:5:tiny")
    world = make_world(5, "tiny")
    told = [fact for fact in world.facts if fact.times_told]
    text = "\n".join(question for talk in talks for question, _ in turns(talk))
    for fact in world.select(band="never"):
        assert not any(fact.question(i) in text for i in range(fact.wordings))
    assert len(talks) == len(told) + 4 * (len(told) // 4)
    held_out = {make_problem(5, i, "held_out").question for i in range(200)}
    assert not held_out & set(text.split("\n"))
    train, validation = split_conversations(talks, 0.3)
    assert train and validation
    assert not {talk.origin for talk in train} & {talk.origin for talk in validation}


@pytest.mark.parametrize("spec, message", [
    ("world:0:huge", "unknown world size 'huge'; use one of tiny"), ("world:", "as in world:0"),
    ("world:x", "write world:<seed>"), ("world:0:tiny:1", "write world:<seed>")])
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        world_conversations(spec)
