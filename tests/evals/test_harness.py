"""The adapter for lm-evaluation-harness: its numbers on local tasks are ours on the same items, to the last digit."""

import dataclasses
import json
import pathlib

import pytest
from test_loglikelihood import MODEL

pytest.importorskip("lm_eval", reason="the extra harness (lm_eval) is not installed")

from experiments import evaluate_harness
from jaxllm.evals.evaluation import evaluate
from jaxllm.evals.harness import Harness
from jaxllm.evals.task_table import open_task
from jaxllm.evals.tasks import Item, Task, pairs

WORDS = "the cat sat on the mat and the dog sat on the cat".split()
CHOICE = Task("choice", "choice", tuple(
    Item((" ".join(WORDS[i:i + 4]),), tuple(" ".join(WORDS[j:j + n]) for j, n in ((i, 1), (i + 1, 3), (0, 2))),
         (i % 3,)) for i in range(8)), shots=1)
LAST = Task("last", "continuation", tuple(Item((" ".join(WORDS[:i]),), (WORDS[i],)) for i in range(3, 9)))
SEVERAL = Task("several", "choice", tuple(
    Item(item.contexts, item.choices, tuple(range(i % 2, 2 + i % 2))) for i, item in enumerate(CHOICE.items)))
SCHEMA = Task("schema", "schema", tuple(Item((" ".join(WORDS[:i]), " ".join(WORDS[i:i + 3])), (WORDS[i],), (i % 2,))
                                        for i in range(3, 9)), shots=1)
TEXT = Task("text", "document", tuple(Item((), (" ".join(WORDS[i:]) * 6,)) for i in range(2)))
REPLY = Task("reply", "generation", tuple(Item((" ".join(WORDS[:i]),), (), answer="x", verifier="v")
                                          for i in range(3, 6)), stop=("t",), max_tokens=12, delimiter="")
TRUTH = {"question": "Is it so?", "mc1_targets": {"choices": ["Yes", "No"], "labels": [1, 0]},
         "mc2_targets": {"choices": ["Yes", "It is", "No"], "labels": [1, 1, 0]}}
LETTERED = [{"question": f" What is {number}? ", "choices": ["p", "q", "r", "s"], "answer": number % 4,
             "subject": "anatomy"} for number in range(6)]
# Task -> the harness's own file for it, and a record as Hugging Face has them.
PUBLISHED = {
    "arc_easy": ("arc/arc_easy.yaml", {"question": "Why?", "choices": {"text": ["so", "not so"], "label": ["A", "B"]},
                                       "answerKey": "B"}),
    "hellaswag": ("hellaswag/hellaswag.yaml", {
        "activity_label": "Baking", "ctx_a": "A man [header] bakes  it.", "ctx_b": "he then", "label": "2",
        "endings": ["eats [step] it.", "sleeps", "says. [title] No", "goes"]}),
    "mmlu": ("mmlu/default/mmlu_anatomy.yaml", LETTERED[5]),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", TRUTH),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", TRUTH),
    "lambada": ("lambada/lambada_openai.yaml", {"text": "A cat sat on the mat\nand a dog by the door"})}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_prompts_are_those_of_the_harness_s_own_tasks(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval.tasks

    file, record = PUBLISHED[name]
    splits = {"test": [record], **({"dev": LETTERED[:5]} if name == "mmlu" else {})}
    for split, records in splits.items():
        (tmp_path / f"{name}_{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    files = {split: str(tmp_path / f"{name}_{split}.jsonl") for split in splits}
    settings = {"include": str(pathlib.Path(lm_eval.tasks.__file__).parent / file), "task": "theirs",
                "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files},
                "test_split": "test", "training_split": None, "validation_split": None,
                "num_fewshot": len(splits.get("dev", ()))}
    (tmp_path / "theirs.yaml").write_text(json.dumps(settings))
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = manager.load(["theirs"])["tasks"]["theirs"]
    theirs.build_all_requests(rank=0, world_size=1)
    ours = open_task(f"{name}={files['test']}", tmp_path)
    asked = pairs(ours, 0, seed=0)
    assert [request.args for request in theirs.instances] == asked and len(asked) == len(ours.items[0].choices)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    names = evaluate_harness.write_tasks([CHOICE, SEVERAL, SCHEMA, LAST, TEXT, REPLY], folder, seed=0)
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
@pytest.mark.parametrize("task", [SEVERAL, SCHEMA], ids=["several", "schema"])
def test_several_right_candidates_and_several_contexts(answers, task):
    ours = evaluate(MODEL, task, control=False, batch_tokens=512)
    theirs = [pair for item in answers[task.name].responses for pair in item]
    assert [pair[0] for pair in theirs] == pytest.approx(ours.logp, abs=1e-5)
    assert answers[task.name].scores["acc"] == ours.scores["acc"] and 0 < sum(ours.scores["acc"]) < len(task.items)


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
    with pytest.raises(ValueError, match="end with a blank"):
        evaluate_harness.write_tasks([Task("s", "schema", (Item(("a", "b"), ("c",)),), delimiter="\n")], None, 0)
