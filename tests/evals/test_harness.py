"""The adapter for lm-evaluation-harness: its numbers on local tasks are ours on the same items, to the last digit."""

import dataclasses

import pytest
from test_loglikelihood import MODEL

pytest.importorskip("lm_eval", reason="the extra harness (lm_eval) is not installed")

from experiments import evaluate_harness
from jaxllm.evals.evaluation import evaluate
from jaxllm.evals.harness import Harness
from jaxllm.evals.tasks import Item, Task

WORDS = "the cat sat on the mat and the dog sat on the cat".split()
CHOICE = Task("choice", "choice", tuple(
    Item((" ".join(WORDS[i:i + 4]),), tuple(" ".join(WORDS[j:j + n]) for j, n in ((i, 1), (i + 1, 3), (0, 2))),
         (i % 3,)) for i in range(8)), shots=1)
LAST = Task("last", "continuation", tuple(Item((" ".join(WORDS[:i]),), (WORDS[i],)) for i in range(3, 9)))
TEXT = Task("text", "document", tuple(Item((), (" ".join(WORDS[i:]) * 6,)) for i in range(2)))
REPLY = Task("reply", "generation", tuple(Item((" ".join(WORDS[:i]),), (), answer="x", verifier="v")
                                          for i in range(3, 6)), stop=("t",), max_tokens=12, delimiter="")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    names = evaluate_harness.write_tasks([CHOICE, LAST, TEXT, REPLY], folder, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        return evaluate_harness.run(Harness(MODEL, batch_tokens=512, slots=2), names, folder)[0]


@pytest.mark.slow
def test_choices(answers):
    ours = evaluate(MODEL, CHOICE, control=False, batch_tokens=512)
    theirs = [pair for item in answers["choice"].responses for pair in item]
    assert [pair[0] for pair in theirs] == pytest.approx(ours.logp, abs=1e-5)
    for metric in ("acc", "acc_norm"):
        assert answers["choice"].scores[metric] == ours.scores[metric]
    assert 0 < sum(ours.scores["acc_norm"]) and ours.scores["acc"] != ours.scores["acc_norm"]


@pytest.mark.slow
def test_continuations_and_documents(answers):
    ours = evaluate(MODEL, LAST, control=False, batch_tokens=512)
    assert [item[0][0] for item in answers["last"].responses] == pytest.approx(ours.logp, abs=1e-5)
    assert answers["last"].scores["acc"] == ours.scores["greedy"]
    texts = evaluate(MODEL, TEXT, batch_tokens=512)
    assert [item[0] for item in answers["text"].responses] == pytest.approx(texts.logp, abs=1e-4)


@pytest.mark.slow
def test_generations(answers):
    grade = type("Grade", (), {"score": 0.0})
    ours = evaluate(MODEL, REPLY, grade=lambda *_: grade, slots=2)
    assert [item[0] for item in answers["reply"].responses] == ours.replies


def test_what_the_adapter_cannot_do_is_refused():
    with pytest.raises(ValueError, match="chat=False"):
        Harness(dataclasses.replace(MODEL, chat=True))
    request = type("Instance", (), {"args": ("a", {"until": ["b"], "num_beams": 4})})
    with pytest.raises(ValueError, match="num_beams"):
        Harness(MODEL).generate_until([request])
    with pytest.raises(ValueError, match="the kind schema"):
        evaluate_harness.write_tasks([Task("s", "schema", (Item(("a", "b"), ("c",)),))], None, 0)
