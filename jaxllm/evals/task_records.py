"""Records of published test sets, and of a user's own, as items. A reader raises for what is wrong with a record.

A benchmark has one layout for each place that publishes it (its authors' files, Hugging Face, the CORE archive); its
reader knows them all, so that any of them can be given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.data import verifiable
from jaxllm.evals.tasks import Item

LETTERS = "ABCDEFGHIJ"
_OPTION = re.compile(r"^[A-J][.)]+\s", re.MULTILINE)
_QUESTION = re.compile(r"\nQuestion:")

Record = Mapping[str, Any]


def _premise(context: str, choices: Sequence[str]) -> int | None:
    """Where the informative part ends: before lettered options, which are choices; before the question of a passage."""
    if all(len(choice.strip()) == 1 for choice in choices) and (options := _OPTION.search(context)):
        line = context.rfind("\n", 0, options.start() - 1) + 1
        return line if context[line:].startswith("Choices:") else options.start()
    if context.startswith("Passage:") and (question := _QUESTION.search(context)):
        return question.start()
    return None


def own(record: Record, where: str) -> Item:
    """A user's own format, which CORE's is too; see docs/evaluate.md. `kind_of` tells which kind it is."""
    del where
    if "text" in record:
        return Item((), (_text(record, "text"),), key=str(record.get("id", "")))
    if "verifier" in record:
        messages = record["prompt"]
        prompt = messages if isinstance(messages, str) else _single(messages)
        reference = record.get("reference")
        return Item((prompt,), (reference,) if reference else (), answer=_text(record, "answer"),
                    verifier=_text(record, "verifier"))
    if "context_options" in record:
        return Item(_texts(record, "context_options"), (_text(record, "continuation"),), _gold(record["gold"]))
    if "choices" in record:
        context = record["query"] if "query" in record else _text(record, "context")
        choices = _texts(record, "choices")
        premise = len(record["premise"]) if "premise" in record else _premise(context, choices)
        if "premise" in record and not context.startswith(record["premise"]):
            raise ValueError("the premise must be the beginning of the context")
        return Item((context,), choices, _gold(record["gold"]), premise, str(record.get("subject", "")))
    return Item((_text(record, "context").rstrip(),), (_text(record, "continuation"),))


def kind_of(record: Record) -> str:
    """The kind of a record of a user's own format."""
    for field, kind in (("text", "document"), ("verifier", "generation"), ("context_options", "schema"),
                        ("choices", "choice"), ("continuation", "continuation")):
        if field in record:
            return kind
    raise ValueError(f"no task has the fields {', '.join(map(repr, record))}; docs/evaluate.md lists the formats")


def _single(messages: Sequence[Mapping[str, str]]) -> str:
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise ValueError("the prompt of a generation must be one message of the user, or a text")
    return messages[0]["content"]


def _gold(gold: Any) -> tuple[int, ...]:
    return tuple(map(int, gold)) if isinstance(gold, list | tuple) else (int(gold),)


def _text(record: Record, field: str) -> str:
    if not isinstance(record[field], str):
        raise TypeError(f"{field} must be a text, not {type(record[field]).__name__}")
    return record[field]


def _texts(record: Record, field: str) -> tuple[str, ...]:
    if not isinstance(record[field], list | tuple) or not all(isinstance(text, str) for text in record[field]):
        raise TypeError(f"{field} must be a list of texts")
    return tuple(record[field])


def arc(record: Record, where: str) -> Item:
    """ARC: question, choices {text, label}, answerKey; or the archive's query, choices, gold.

    References: Clark et al., 2018. https://arxiv.org/abs/1803.05457
    """
    if "query" in record:
        return own({**record, "query": record["query"].rstrip()}, where)
    labels = list(record["choices"]["label"])
    return Item((f"Question: {_text(record, 'question')}",), tuple(record["choices"]["text"]),
                (labels.index(record["answerKey"]),), key=str(record.get("id", "")))


def hellaswag(record: Record, where: str) -> Item:
    """HellaSwag: activity_label, ctx_a, ctx_b, endings, label; or query, choices, gold; or six lines of klosax's text.

    References: Zellers et al., 2019. https://arxiv.org/abs/1905.07830 Its WikiHow part bears marks in brackets, which
      lm-evaluation-harness takes out as here.
    """
    if isinstance(record, list):
        context, label, *endings = record
        return Item((context,), tuple(endings), (int(label),))
    if "query" in record:
        return own(record, where)
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    return Item((_without_marks(context),), tuple(map(_without_marks, record["endings"])), (int(record["label"]),))


def _without_marks(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def mmlu(record: Record, where: str) -> Item:
    """MMLU: a row of the authors' csv (question, four options, letter), its subject from the file's name; or question,
    choices, answer, subject.

    References: Hendrycks et al., 2020. https://arxiv.org/abs/2009.03300
    """
    if isinstance(record, Mapping):
        question, options, gold = _text(record, "question"), list(record["choices"]), int(record["answer"])
        subject = str(record.get("subject", ""))
    else:
        question, *options, letter = record
        gold = LETTERS.index(letter)
        found = re.search(r"([a-z_]+)_(?:dev|val|test)\.csv", where)
        subject = found[1] if found else ""
    if len(options) != 4:
        raise ValueError(f"a question has four options, not {len(options)}")
    premise = question.strip()
    shown = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Item((f"{premise}{shown}\nAnswer:",), tuple(LETTERS[:4]), (gold,), len(premise), subject.replace("_", " "))


def truthfulqa_mc1(record: Record, where: str) -> Item:
    """TruthfulQA, one right answer: the best one among the wrong ones; or mc1_targets.

    References: Lin et al., 2021. https://arxiv.org/abs/2109.07958
    """
    return _truthful(record, "mc1_targets", single=True)


def truthfulqa_mc2(record: Record, where: str) -> Item:
    """TruthfulQA, all right answers among the wrong ones; or mc2_targets."""
    return _truthful(record, "mc2_targets", single=False)


def _truthful(record: Record, field: str, *, single: bool) -> Item:
    if isinstance(record, Mapping):
        question, targets = _text(record, "question"), record[field]
        choices, gold = list(targets["choices"]), [i for i, label in enumerate(targets["labels"]) if label]
    else:
        question, best, right, wrong = record[2:6]
        rights = [best] if single else _listed(right)
        choices, gold = [*rights, *_listed(wrong)], range(len(rights))
    return Item((f"Q: {question}\nA:",), tuple(choices), tuple(gold), len(f"Q: {question}"))


def _listed(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(";") if part.strip()]


def lambada(record: Record, where: str) -> Item:
    """LAMBADA: the last word of a passage; context and continuation, or one text.

    References: Paperno et al., 2016. https://arxiv.org/abs/1606.06031
    """
    if "continuation" in record:
        return own(record, where)
    context, _, word = _text(record, "text").rpartition(" ")
    return Item((context,), (word,))


def gsm8k(record: Record, where: str) -> Item:
    """GSM8K; the reference solution ends with #### and the number (`jaxllm.data.verifiable`)."""
    task = verifiable.FORMATS["gsm8k"](record)
    return Item((f"Question: {task.prompt[0]['content']}\nAnswer:",), (task.reference,), answer=task.answer,
                verifier=task.verifier)


def humaneval(record: Record, where: str) -> Item:
    """HumanEval: code to go on with, checked by its tests in the sandbox (`jaxllm.data.verifiable`)."""
    task = verifiable.FORMATS["humaneval"](record)
    return Item((task.prompt[0]["content"],), (task.reference,) if task.reference else (), answer=task.answer,
                verifier=task.verifier, key=task.key)


def ifeval(record: Record, where: str) -> Item:
    """IFEval; the answer holds the instructions and their arguments (`jaxllm.evals.ifeval`)."""
    answer = {field: record[field] for field in ("prompt", "instruction_id_list", "kwargs")}
    return Item((_text(record, "prompt"),), (), answer=json.dumps(answer, ensure_ascii=False), verifier="ifeval",
                key=str(record.get("key", "")))
