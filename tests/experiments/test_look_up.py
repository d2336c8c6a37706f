"""Looking up: who is asked and who trains, what a record says, the mislaid pages, and all of it once, small."""

import json

import jax
import pytest
from random_weights import random_weights

from configs import look_up as configs
from experiments import look_up, look_up_report
from experiments.look_up_measure import GROUPS, MODES, facts_of_side, library, mislaid, record
from jaxllm.data.search_talks import SYSTEM, prompt, query_for
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.infer.tool_loop import Transcript
from jaxllm.model.config import preset
from jaxllm.train.checkpoint import save_model

pytest.importorskip("bm25s", reason="needs the extra `tools`")

WORLD = make_world(0, "tiny")
SHELVES = library(WORLD, "card")


def small():
    config = configs.get_config("tiny")
    config.seeds, config.steps, config.questions, config.never_questions = (0,), 11, 2, 3
    config.slots, config.max_tokens, config.row_length = 4, 8, 256
    for key in config.talks:
        config.talks[key] = 6
    return config


def test_nobody_who_is_asked_is_trained_on():
    config = configs.get_config("tiny")
    for key in config.talks:
        config.talks[key] = 60
    talks = [talk for kind in look_up.lessons(config, WORLD, 0).values() for talk in kind]
    trained = {talk.origin for talk in talks}
    for side in ("test", "validation"):
        config.split = side
        asked = look_up.questions(config, WORLD, 0)
        assert {fact.entity.name for fact in asked}.isdisjoint(trained)
        assert any(fact.entity.band == "never" for fact in asked)
        assert not any(fact.entity.name in json.dumps(talk.messages) for talk in talks for fact in asked)
    assert not facts_of_side(WORLD, "train", 0)["never"]


def test_a_mislaid_world_gives_everybody_the_facts_of_somebody_else():
    wrong = mislaid(WORLD, 0)
    rows = {person.name: tuple(fact.value for fact in WORLD.facts_of(person.name).values()) for person in WORLD.people}
    moved = {person.name: tuple(fact.value for fact in wrong.facts_of(person.name).values()) for person in WORLD.people}
    assert sorted(rows.values()) == sorted(moved.values())
    same = sum(rows[name] == moved[name] for name in rows)
    assert same == sum(list(rows.values()).count(rows[name]) > 1 for name in rows if rows[name] == moved[name])
    assert mislaid(WORLD, 1) != wrong == mislaid(WORLD, 0)


def transcript(fact, *messages):
    asked = prompt(fact, 0, SYSTEM)
    return Transcript([], [], [], [], 0, [*asked, *messages], "stop", 0, True), len(asked)


def call(query):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": json.dumps(query)}}]}


def test_records():
    fact, other = WORLD.select(band="never", kind="person", attribute="job")[:2]
    assert fact.value != other.value

    def told(*messages, shelves=SHELVES):
        return record(fact, *transcript(fact, *messages)[:1], shelves, transcript(fact)[1])

    def reply(text):
        return {"role": "assistant", "content": text}

    def result(whose):
        return {"role": "tool", "content": SHELVES.pages[whose.entity.name]}

    memory = told(reply(f" {fact.value}."))
    assert (memory["right"], memory["searched"], memory["copied"], memory["query_right"]) == (True, False, None, False)
    found = told(call({"query": query_for(fact)}), result(fact), reply(f" {fact.value}."))
    assert all(found[key] for key in ("right", "searched", "query_right", "found", "copied"))
    lost = told(call({"query": query_for(other)}), result(other), reply(f" {other.value}."))
    assert (lost["right"], lost["query_right"], lost["found"], lost["copied"]) == (False, False, False, True)
    silent = told(call({"query": 7}), {"role": "tool", "content": "nothing found"}, reply(""))
    assert (silent["right"], silent["query"], silent["copied"], silent["searched"]) == (False, None, None, True)
    assert not told(call({"query": "x"}))["searched"]


def test_shares_and_their_interval():
    def rows(*right):
        return [{"group": "never", "right": bool(x)} for x in right]

    seeds = [{"search": rows(1, 1)}, {"search": rows(1, 0)}, {"search": rows(0, 0)}]
    mean, low, high = look_up_report.interval(seeds, "search", "never", look_up_report._right)
    assert (mean, low, high) == (0.5, 0.0, 1.0)  # 0.5 +- 4.3 * 0.5 / sqrt(3), cut
    assert look_up_report.interval(seeds, "search", "often", look_up_report._right) is None


@pytest.mark.parametrize("key, value, said", [
    ("size", "huge", "config.size"), ("split", "train", "config.split"), ("seeds", (), "config.seeds"),
    ("steps", 0, "config.steps"), ("talks.page", 0, "talks.page"), ("base.data.sources", ("world:0",), "lacks")])
def test_what_cannot_be_is_refused_at_once(key, value, said, tmp_path):
    config = configs.get_config("tiny")
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=said):
        look_up.main(config, str(tmp_path))


@pytest.mark.slow
def test_the_whole_of_it_small(tmp_path, draw_no_more):
    """A random model, eleven steps: every question of every mode has its record, and a second run finds them."""
    tokenizer = train_tokenizer([page.text for page in documents(WORLD)], 512)
    model = preset("nano", vocab_size=512, layers=1, max_positions=512)
    save_model(tmp_path / "model", jax.device_put(random_weights(model)), model, tokenizer)
    config = small()
    config.model = str(tmp_path / "model")
    look_up.main(config, str(tmp_path / "run"))
    numbers = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(MODES) <= set(numbers) and set(numbers["search"]) == set(GROUPS) and not numbers["bar_reached"]
    for part in ("search", "memory"):
        records = json.loads(next((tmp_path / "run").glob(f"seed-0-{part}-*.json")).read_text())
        assert {len(rows) for rows in records.values()} == {len(look_up.questions(config, WORLD, 0))}
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "results.json").unlink()
    draw_no_more()
    look_up.main(config, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == numbers
