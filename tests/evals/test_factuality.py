"""Verdicts and rates by definition, risk-coverage against brute force, questions, and what the probe reads."""

import itertools
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from random_weights import random_weights

from jaxllm.data.world import documents, make_world
from jaxllm.evals import factuality
from jaxllm.evals.factuality import Verdict, is_refusal, normalise, verifier
from jaxllm.evals.probe import end_states, probe, reply_logp
from jaxllm.evals.questions import BLANK, HELD_OUT, UNTOLD, cloze_questions, passages, split_of, world_questions
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.model.config import preset
from jaxllm.model.layers import norm
from jaxllm.model.transformer import hidden_states

R, W, N = Verdict.RIGHT, Verdict.WRONG, Verdict.REFUSED


@pytest.mark.parametrize("reply, exact, verdict", [
    (" baker.", True, R), ("A Baker!", True, R), ("She is a baker.", True, W), ("She is a baker.", False, R),
    ("bakery", False, W), ("breadbaker", False, W), ("", False, W), ("...", False, W),
    ("Nobody knows, perhaps a baker.", False, N), ("I don\u2019t know.", True, N), ("I'm not sure; a baker?", False, N),
    ("Not a clue", False, W), ("Nobody knowsit", False, W)])
def test_verifier(reply, exact, verdict):
    assert verifier(["Nobody knows."], exact)("What is the job of Ada?", "baker", reply) == verdict


def test_a_truth_without_words_is_refused():
    with pytest.raises(ValueError, match=r"the truth '\.\.\.'"):
        verifier()("?", "...", "x")
    assert normalise("The \ufb01ddle\u2014an OBOE") == "fiddle oboe" and not is_refusal("")


def test_rates_are_shares_of_what_they_name():
    before = np.array([R, R, W, W, N, R])
    after = np.array([R, N, W, N, N, W])
    unknown = np.array([0, 0, 1, 1, 1, 0], bool)
    assert factuality.confabulation(before, unknown) == pytest.approx(2 / 3)
    assert factuality.confabulation(after, unknown) == pytest.approx(1 / 3)
    assert factuality.over_refusal(after, ~unknown) == pytest.approx(1 / 3)
    assert factuality.refusal_precision(after, before) == pytest.approx(2 / 3)
    assert factuality.refusal_recall(after, before) == pytest.approx(2 / 3)
    assert factuality.accuracy_kept(after, before) == pytest.approx(1 / 3)
    assert math.isnan(factuality.confabulation(after, np.zeros(6, bool)))


def brute_force(confidence, wrong):
    """Risk at every coverage, averaged over every order of all answers that puts no less confident one first."""
    orders = [order for order in itertools.permutations(range(len(wrong)))
              if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))]
    risks = [[Fraction(sum(int(wrong[i]) for i in order[:count]), count) for order in orders]
             for count in range(1, len(wrong) + 1)]
    return [float(sum(risk) / len(orders)) for risk in risks]


@pytest.mark.parametrize("seed", range(6))
def test_risk_coverage_is_that_of_all_orders(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 8))
    confidence, wrong = rng.integers(0, 3, count) / 7, rng.random(count) < 0.5
    coverage, risk = factuality.risk_coverage(confidence, wrong)
    expected = brute_force(confidence, wrong)
    np.testing.assert_allclose(risk, expected)
    np.testing.assert_allclose(coverage, np.arange(1, count + 1) / count)
    assert factuality.aurc(confidence, wrong) == pytest.approx(np.mean(expected))
    best = min(np.mean(brute_force(np.array(order), wrong)) for order in itertools.permutations(range(count))) \
        if count < 6 else np.mean(brute_force(-wrong.astype(float), wrong))
    assert factuality.excess_aurc(confidence, wrong) == pytest.approx(np.mean(expected) - best)
    for limit in (0.0, 0.3, 1.0):
        inside = [c for c, r in zip(coverage, expected, strict=True) if r <= limit + 1e-12]
        assert factuality.coverage_at(confidence, wrong, limit) == pytest.approx(max(inside, default=0))


@pytest.mark.parametrize("confidence, wrong", [([], []), ([0.1], [True, False]), ([math.nan], [True])])
def test_risk_coverage_refuses_what_has_no_order(confidence, wrong):
    with pytest.raises(ValueError, match="of one length"):
        factuality.risk_coverage(np.array(confidence), np.array(wrong))


def test_threshold_is_the_nearest_to_the_bar_of_all():
    rng = np.random.default_rng(1)
    for bar in ((0.2, 0.1), (0.9, 0.01)):
        confidence, unknown = rng.random(40).round(1), rng.random(40) < 0.5
        verdicts = np.where(unknown, W, R)
        threshold = factuality.choose_threshold(confidence, verdicts, ~unknown, unknown, bar)

        def distance(t):
            return max(np.mean(confidence[unknown] >= t) / bar[0], np.mean(confidence[~unknown] < t) / bar[1])  # noqa: B023
        assert distance(threshold) == pytest.approx(min(map(distance, [*np.arange(0, 1.1, 0.05), math.inf])))
    assert factuality.distance_to_bar(math.nan, 0.05, (0.2, 0.1)) == 0.5


def test_world_questions_and_their_bands():
    world = make_world(0, "tiny")
    facts = world.select(kind="person")
    asked = world_questions(facts, 0, wordings=2)
    assert len(asked) == 2 * len(facts) == len({q.text for q in asked})
    held_out = world_questions(facts, 0, held_out=True)
    text = "\n".join(page.text for page in documents(world))
    assert not any(q.text in text for q in held_out) and len(held_out) == len(facts)
    by_name = {fact.entity.name: fact.entity.band for fact in facts}
    for question, fact in zip(held_out, facts, strict=True):
        assert question.answer == fact.value and question.origin in question.text
        assert (question.band == HELD_OUT) == (not fact.times_told and by_name[question.origin] != "never")
        assert (question.band in UNTOLD) == (not fact.times_told)
    assert {HELD_OUT, "never"} < {q.band for q in held_out}


def test_split_depends_on_the_origin_alone_and_keeps_its_shares():
    sides = [split_of(f"person {i}", (0.5, 0.2), 3) for i in range(4000)]
    assert sides == [split_of(f"person {i}", (0.5, 0.2), 3) for i in range(4000)]
    for side, share in enumerate((0.5, 0.2, 0.3)):
        assert abs(sides.count(side) / 4000 - share) < 0.03
    assert sides != [split_of(f"person {i}", (0.5, 0.2), 4) for i in range(4000)]


@pytest.mark.parametrize("sentence, answer", [
    ("The bridge over the river Tarrow near Redbrook was opened to the public in 1887.", "1887"),
    ("About 12,500 people live in the old port of Whitewharf on the coast of Cornwall.", "12,500"),
    ("The painter Ada Fenwick studied for many years in the workshop of Karl von Holt.", "Karl von Holt"),
    ("It was opened by Ada Fenwick in the summer of 1887 near the town of Redbrook.", None),  # points back
    ("The town of Redbrook held a market in 1887 and nobody in Kent remembers 1887 now.", "Kent"),  # told twice
    ("The bridge over the river was opened to the public in the year 1887.", None),  # nothing to go by
    ("Ada Fenwick was born in Redbrook.", None), ("see Redbrook and Kent for a longer list of all markets.", None),
    ("The works of Ada Fenwick were printed in Redbrook in the years 1887\u20131999.", "Redbrook"),  # a span
    ("The works of Ada Fenwick in Redbrook were printed.See https://example.org for all of 1887.", None),
    ("About 3.5 of the people in Redbrook on Tarrow, or 40% in all, keep cattle.", "Tarrow"),
])
def test_cloze(sentence, answer):
    found = cloze_questions(f"{sentence} He came. Short.", "a")
    assert [question.answer for question in found] == ([answer] if answer else [])
    for question in found:
        assert sentence.replace(answer, BLANK) in question.text and answer not in question.text
        assert question.origin == "a"


def test_passages_keep_every_sentence_of_long_paragraphs():
    sentences = [f"Sentence number {i} of this text says nothing more than that." for i in range(40)]
    text = "A heading\n" + " ".join(sentences) + "\n" + " ".join(sentences[:4])
    found = passages(text, shortest=200, longest=500)
    assert " ".join(found) == " ".join(sentences + sentences[:4])
    assert all(200 <= len(passage) <= 500 for passage in found) and len(found) > 5


def test_cloze_on_real_text_never_gives_the_answer_away(real_data):
    from jaxllm.data.sources import open_source
    texts = [document.text for document in open_source(str(real_data("text/wiki_demo.txt.xz")))]
    found = [q for i, text in enumerate(texts[:6]) for part in passages(text[:20_000])
             for q in cloze_questions(part, str(i))]
    assert len(found) > 20 and all(q.answer not in q.text and q.text.count(BLANK) == 1 for q in found)


@pytest.fixture(scope="module")
def small():
    config = preset("nano")
    return jax.device_put(random_weights(config)), config, [[5, 9, 2, 7], [3], [8, 1, 1, 4, 6, 2, 9]]


def test_end_states_are_those_of_the_model(small):
    params, config, prompts = small
    states = end_states(params, config, prompts, batch=2)
    assert states.shape == (config.layers + 1, 3, config.dim)
    rows = np.array([prompt + [0] * (7 - len(prompt)) for prompt in prompts], np.int32)  # none sees what follows
    hidden = np.asarray(jax.jit(hidden_states, static_argnums=1)(params, config, rows))
    last = np.asarray(jax.jit(norm, static_argnums=2)(states[-1], params["final_norm"], config))
    for i, prompt in enumerate(prompts):
        np.testing.assert_allclose(states[0, i], params["embedding"]["tokens"][prompt[-1]], atol=1e-6)
        np.testing.assert_allclose(last[i], hidden[i, len(prompt) - 1], atol=2e-5)


def test_reply_logp_is_that_of_the_sampler(small):
    params, config, prompts = small
    drawn = generate(params, config, prompts, key=1, max_tokens=5, settings=SamplingSettings(), stop_tokens=(4,))
    logp = reply_logp(params, config, prompts, drawn.rows(), batch=2)
    np.testing.assert_allclose(logp, np.sum(drawn.logp, axis=1), atol=1e-4)


def test_probe_finds_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=8)

    def draw(count):
        states = rng.normal(size=(count, 8)).astype(np.float32)
        return states, states @ direction + rng.normal(size=count) > 0
    (states, wrong), (others, truth) = draw(300), draw(400)
    origins = [str(i // 3) for i in range(300)]
    found = probe(states, wrong, origins, others, l2s=(1e-3, 30.0))
    assert found.l2 == 1e-3 and found.fold_auc > 0.85
    assert np.mean((found.scores > 0) == truth) > 0.8
    shuffled = probe(states, rng.permutation(wrong), origins, others, l2s=(1e-3,))
    assert 0.35 < shuffled.fold_auc < 0.65
    with pytest.raises(ValueError, match="0 of 300 answers"):
        probe(states, np.zeros(300, bool), origins, others, l2s=(1.0,))
