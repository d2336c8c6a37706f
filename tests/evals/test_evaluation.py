"""Tasks put to a model: the metrics on known numbers, intervals, controls, differences, generations, contamination."""

import dataclasses
import math
import types

import numpy as np
import pytest
from test_loglikelihood import MODEL, TOKENIZER

from jaxllm.data.shards import open_shards, write_shards
from jaxllm.evals import evaluation, generation
from jaxllm.evals.contamination import item_text, overlaps, shard_documents
from jaxllm.evals.evaluation import Result, compare, evaluate, item_scores
from jaxllm.evals.loglikelihood import Scored
from jaxllm.evals.tasks import Item, Task
from jaxllm.infer.engine import Engine


def result_of(values, name="t", metric="acc", weights=None, keys=None):
    keys = keys or [str(i) for i in range(len(values))]
    return Result(name, "choice", metric, 0.25, keys, {metric: list(values)}, weights or [1.0] * len(values),
                  [None] * len(values), 1, 0.0)


def test_metrics_of_known_log_likelihoods():
    item = Item(("q",), ("ab", "abcdefgh", "\u00e9\u00e9\u00e9\u00e9"), (1,))
    scored = [Scored(-4.0, False, 1), Scored(-8.0, False, 8), Scored(-6.0, True, 4)]
    found = item_scores("choice", item, scored)
    # A character: -2, -1, -1.5. A byte: -2, -1, -0.75. A token: -4, -1, -1.5.
    assert (found["acc"], found["acc_norm"], found["acc_bytes"], found["acc_token"]) == (0, 1, 0, 1)
    share = np.exp([-4, -8, -6])
    assert math.isclose(found["mass"], share[1] / share.sum())
    both = item_scores("choice", dataclasses.replace(item, gold=(0, 1)), scored)
    assert both["acc"] == 1 and math.isclose(both["mass"], share[:2].sum() / share.sum())
    assert item_scores("schema", Item(("a", "b"), ("c",), (1,)), [Scored(-2, False, 1), Scored(-1, False, 3)]) == {
        "acc": 1.0, "acc_token": 1.0}
    assert item_scores("continuation", item, [Scored(-6.0, True, 3)]) == {"greedy": 1.0, "perplexity": 2.0}


def test_intervals_are_of_the_kind_of_number():
    mean, low, high = result_of([1] * 8 + [0] * 2).interval()
    assert (round(mean, 2), round(low, 4), round(high, 4)) == (0.8, 0.4902, 0.9433)  # Wilson
    mean, low, high = result_of([0.2, 0.4, 0.6]).interval()
    assert math.isclose(mean, 0.4) and math.isclose(high - mean, 4.302653 * 0.2 / math.sqrt(3), rel_tol=1e-5)
    assert low == 0  # a share cannot be below
    weighted = result_of([1.0, 2.0], weights=[3.0, 1.0])
    assert math.isclose(weighted.interval()[0], 1.25)


def test_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    first, second = (hard > 0.4).astype(float), (hard > 0.42).astype(float)  # right on the same items, but for a few
    found = compare(result_of(first), result_of(second))
    assert math.isclose(found.mean, (first - second).mean())
    assert 0 < found.low < found.mean < found.high and found.high - found.low < 0.05
    only = int((first > second).sum())
    assert math.isclose(found.p, 2 * 0.5**only) and found.items == 400  # McNemar: all that differ go one way
    moved = result_of(second[::-1], keys=[str(i) for i in range(400)][::-1])
    assert compare(result_of(first), moved) == found  # by key, not by place
    assert compare(result_of([0.1, 0.9]), result_of([0.2, 0.3])).p is None
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(result_of(first), result_of(second, name="u"))
    with pytest.raises(ValueError, match="no item in common"):
        compare(result_of([1.0]), result_of([1.0], keys=["z"]))
    twice = result_of([1.0, 0.0], keys=["z", "z"])
    with pytest.raises(ValueError, match="two items have one key"):
        compare(twice, twice)


def test_a_prior_over_answers_earns_the_same_on_the_control_and_a_reader_does_not(monkeypatch):
    items = tuple(Item((f"the word {word}",), ("cat", "dog"), (int(word == "dog"),), key=str(i))
                  for i, word in enumerate(["cat", "dog"] * 20))
    task = Task("t", "choice", items, chance=0.5)

    def stub(by):
        def scored(model, asked, **_):
            texts = [(TOKENIZER.decode(context), TOKENIZER.decode(after).strip()) for context, after in asked]
            return [Scored(by(*text), False, 1) for text in texts]
        return scored

    monkeypatch.setattr(evaluation, "loglikelihoods", stub(lambda context, word: -float(word == "dog")))
    prior = evaluate(MODEL, task)
    assert prior.interval()[0] == prior.control_interval()[0] == 0.5
    monkeypatch.setattr(evaluation, "loglikelihoods", stub(lambda context, word: -float(word not in context)))
    reader = evaluate(MODEL, task)
    assert reader.interval()[0] == 1 and reader.control_interval()[0] == 0  # the other item asks for the other word
    assert evaluate(MODEL, task, control=False).control_interval() is None
    assert len(reader.logp) == 80 == 2 * len(items) and reader.logp[:2] == [0.0, -1.0]


def test_replies_end_at_stop_strings_and_tokens_and_are_graded(monkeypatch):
    items = tuple(Item((f"the cat {i}",), (), answer="a" if i else "b", verifier="v", key=str(i))
                  for i in range(3))
    task = Task("t", "generation", items, max_tokens=12, delimiter="")
    seen = []

    def grade(verifier, reply, answer):
        seen.append((verifier, reply, answer))
        return types.SimpleNamespace(score=float(answer == "a"))

    whole = evaluate(MODEL, task, grade=grade, slots=2)
    assert whole.scores["score"] == [0.0, 1.0, 1.0] and seen[0] == ("v", whole.replies[0], "b")
    assert whole.control == [0.0, 1.0, 1.0] and seen[3][1] in whole.replies[1:]  # another item's reply
    mark = whole.replies[0][2:4]
    cancelled, cancel = [], Engine.cancel
    monkeypatch.setattr(Engine, "cancel", lambda engine, number: (cancelled.append(number), cancel(engine, number)))
    cut = evaluate(MODEL, dataclasses.replace(task, stop=(mark,)), grade=grade, slots=2)
    assert cut.replies == [reply.partition(mark)[0] for reply in whole.replies] and cancelled  # none is written on
    with pytest.raises(ValueError, match="need a grader"):
        evaluate(MODEL, task)
    stops = []
    monkeypatch.setattr(evaluation, "complete", lambda *asked, stop, **more: stops.append(stop) or ["a", "b", "c"])
    for chat in (False, True):  # a chat's reply may hold what ends a text, such as an empty line
        evaluate(dataclasses.replace(MODEL, chat=chat), dataclasses.replace(task, stop=("\n\n",)), grade=grade)
    assert stops == [("\n\n",), ()]


@pytest.mark.parametrize("format", [None, "chatml"])
def test_a_reply_to_text_ends_where_a_chat_model_ends_its_turn(format, monkeypatch):
    """A model that writes an end of turn and goes on: of one that has no chats it is text like any other."""
    tokenizer = dataclasses.replace(TOKENIZER, chat_template=format)
    written = [*tokenizer.encode("on"), tokenizer.special_tokens["<|im_end|>"], *tokenizer.encode("and on")]
    monkeypatch.setattr(generation, "Engine", lambda *_, **__: Told(written))
    reply = generation.complete(dataclasses.replace(MODEL, tokenizer=tokenizer), ["the"], max_tokens=8)
    assert reply == ["on" if format else "on<|im_end|>and on"]


class Told:
    """An engine whose model writes the given tokens, as far as a stop token."""

    def __init__(self, tokens):
        self.tokens, self.waiting, self.running = tokens, False, False

    def submit(self, request):
        self.waiting = True
        stops = [place for place, token in enumerate(self.tokens) if token in request.stop_tokens]
        self.tokens = self.tokens[:stops[0] + 1] if stops else self.tokens
        return 0

    def step(self):
        self.waiting = False
        last = len(self.tokens) - 1
        return [types.SimpleNamespace(request_id=0, token=token, finish="stop" if place == last else None)
                for place, token in enumerate(self.tokens)]


def test_documents_are_weighed_by_their_bytes():
    texts = ("the cat sat on the mat", "the dog")
    task = Task("t", "document", tuple(Item((), (text,), key=text) for text in texts))
    found = evaluate(MODEL, task, batch_tokens=512)
    assert found.weights == [22.0, 7.0] and found.control == [None, None]
    mean = -sum(found.logp) / math.log(2) / 29
    assert math.isclose(found.interval()[0], mean, rel_tol=1e-6)


def test_overlaps_with_documents_and_with_shards(tmp_path):
    words = [f"word{i}" for i in range(40)]
    items = tuple(Item((" ".join(words[10 * i:10 * i + 9]),), (words[10 * i + 9], "other"), key=f"k{i}")
                  for i in range(4))
    task = Task("t", "choice", items)
    assert item_text(items[1]) == " ".join(words[10:20])
    documents = ["nothing here", f"so {' '.join(words[10:20])} it was", f"{' '.join(words[30:38])} and on"]
    expected = {"k1": 1.0, "k3": 1 / 3}
    found = overlaps([task], documents, n=8)[0]
    assert found.found == expected and (found.items, found.searched, found.documents) == (4, 4, 3)
    short = Task("u", "choice", (Item(("1 + 1 =",), ("2", "3")),))
    assert overlaps([short], documents)[0].searched == 0 and not overlaps([short], documents)[0].found
    write_shards(tmp_path / "shards", [(np.array([*TOKENIZER.encode(text), TOKENIZER.end_of_text]), len(text))
                                       for text in documents], vocab_size=TOKENIZER.vocab_size,
                 fingerprint=TOKENIZER.fingerprint, end_of_text=TOKENIZER.end_of_text)
    for block in (7, 1 << 20):  # a document may go on in the next block
        read = list(shard_documents(open_shards(tmp_path / "shards"), TOKENIZER, block=block))
        assert read == documents
