"""Conversations with a search: nobody real is practised on, and a page and a call stand as the loop puts them."""

import collections

import pytest

from jaxllm.data.chat import end_of_turn, render
from jaxllm.data.search_talks import SYSTEM, invented_people, page_talk, plain_talk, prompt, query_for, search_talk
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.infer.engine import Completion
from jaxllm.infer.tool_loop import run_with_tools
from jaxllm.infer.tool_search import search_tool, world_encyclopedia

WORLD = make_world(0, "tiny")
TOKENIZER = train_tokenizer([page.text for page in documents(WORLD)], 600)
PRACTICE = invented_people(WORLD, 40, seed=0)


def test_the_invented_are_nobody_and_bear_names_of_the_world():
    names = {person.name for person in WORLD.people}
    firsts, lasts = ({name.split()[i] for name in names} for i in (0, 1))
    invented = [person.name for person in PRACTICE.people]
    assert len(set(invented)) == 40 and not names & set(invented)
    assert all(name.split()[0] in firsts and name.split()[1] in lasts for name in invented)
    assert {len(facts) for facts in PRACTICE.facts_by_name.values()} == {4}
    pronouns = {person.name.split()[0]: person.pronoun for person in WORLD.people}
    assert all(person.pronoun == pronouns[person.name.split()[0]] for person in PRACTICE.people)
    homes = {fact.value for fact in PRACTICE.facts if fact.attribute == "home"}
    assert homes <= set(WORLD.values("person", "home"))


def test_another_seed_invents_others_and_the_same_seed_the_same():
    assert invented_people(WORLD, 40, seed=0) == PRACTICE
    other = {person.name for person in invented_people(WORLD, 40, seed=1).people}
    assert len(other & {person.name for person in PRACTICE.people}) < 20


def test_no_more_people_than_there_are_names():
    with pytest.raises(ValueError, match="ask for fewer"):
        invented_people(WORLD, 100_000, seed=0)


def test_a_fact_is_found_under_its_query():
    """By BM25 of a library, over invented people who share first and last names."""
    pytest.importorskip("bm25s", reason="needs the extra `tools`")
    found = search_tool(world_encyclopedia(PRACTICE, "card"))
    shared = collections.Counter(word for person in PRACTICE.people for word in person.name.split())
    assert max(shared.values()) > 1
    for fact in PRACTICE.facts:
        result = found.call({"query": query_for(fact)})
        assert result.startswith(fact.entity.name) and fact.value in result


def test_the_loop_writes_what_is_trained_on():
    """A model that says what the conversation says gets the conversation from the loop, token for token; and what it
    said is what the loss counts."""
    pytest.importorskip("bm25s", reason="needs the extra `tools`")
    tool = search_tool(world_encyclopedia(PRACTICE, "card"))
    fact = PRACTICE.facts[5]
    talk = search_talk(fact, 1, lambda query: tool.call({"query": query}))
    trained = render(talk.messages, TOKENIZER, template="im_sep")
    replies = [[id for id, mine in zip(trained.ids[start:end], trained.mask[start:end], strict=True) if mine]
               for start, end in _turns(trained.ids)]
    assert len(replies) == 2

    def speak(requests):
        ids = replies.pop(0)
        return [Completion(tuple(ids), (0.0,) * len(ids), (0.0,) * len(ids), "stop", 0) for _ in requests]

    asked = [prompt(fact, 1, SYSTEM)]
    transcript = run_with_tools(speak, asked, [tool], TOKENIZER, template="im_sep", describe=False)[0]
    assert transcript.ids == trained.ids and transcript.mask == trained.mask and transcript.exact
    told = TOKENIZER.decode([id for id, mine in zip(trained.ids, trained.mask, strict=True) if mine])
    assert told.count(fact.value) == 1 and fact.entity.name in told and "Pet:" not in told


def _turns(ids):
    """Where the parts between ends of turns stand that hold something the assistant said."""
    ends = [i + 1 for i, id in enumerate(ids) if id == end_of_turn(TOKENIZER, "im_sep")[0]]
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    assistant = TOKENIZER.encode("assistant")
    return [(start, end) for start, end in spans if ids[start + 1:start + 1 + len(assistant)] == assistant]


@pytest.mark.parametrize("system", ["", SYSTEM])
def test_from_memory(system):
    fact = WORLD.facts[0]
    messages = plain_talk(fact, 0, system).messages
    assert messages[:-1] == prompt(fact, 0, system) and [m["role"] for m in messages[-2:]] == ["user", "assistant"]
    assert messages[-1]["content"].strip(" .") == fact.value


def test_a_page_stands_before_the_question_and_does_not_count():
    fact = WORLD.facts[0]
    talk = page_talk(fact, 0, "A page on nothing.")
    rendered = render(talk.messages, TOKENIZER, template="im_sep")
    counted = TOKENIZER.decode([id for id, mine in zip(rendered.ids, rendered.mask, strict=True) if mine])
    assert talk.messages[0] == {"role": "system", "content": "A page on nothing."}
    assert counted == f" {fact.value}.<|im_end|>"
