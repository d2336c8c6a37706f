"""The model that is interrogated: asking it, what it is taught from its own answers, and rounds of fine-tuning."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import random
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import lab, report
from jaxllm.data.chat import render
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows, mix
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.world import Fact
from jaxllm.data.world_talks import fact_talks
from jaxllm.evals.factuality import Judge, Verdict, confabulation, distance_to_bar, normalise, over_refusal
from jaxllm.evals.probe import end_states, reply_logp
from jaxllm.evals.questions import UNTOLD, Question
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import Params
from jaxllm.train.checkpoint import load_model, save_model


@dataclasses.dataclass(frozen=True)
class Subject:
    """A chat model.

    Attributes:
      params, model, tokenizer: as `load_model` gives them.
      lead: what its replies begin with; " " where it was taught the values of the world (jaxllm/data/world_talks.py).
    """

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    lead: str = ""

    @classmethod
    def load(cls, folder: pathlib.Path | str, lead: str) -> Subject:
        """From a model folder."""
        return cls(*load_model(folder), lead)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a model said to a question.

    Attributes:
      reply: its greedy reply.
      verdict: of that.
      confidence: the probability of that reply.
      right: share of its samples that are right.
      agreement: share of its samples that say the same as the greedy reply.
      own: the commonest right sample, or the greedy reply where none is right.
    """

    reply: str
    verdict: int
    confidence: float
    right: float
    agreement: float
    own: str


@dataclasses.dataclass(frozen=True)
class Interrogated:
    """Questions and what was said to them, as arrays over the questions.

    Attributes:
      questions, asked: N of each.
      known: bool [N]; the model knows the answer: at least known_share of its samples are right, and it was told.
      unknown: bool [N]; no document tells the answer; without bands: at most unknown_share of the samples are right.
    """

    questions: Sequence[Question]
    asked: Sequence[Asked]
    known: np.ndarray
    unknown: np.ndarray

    @classmethod
    def by_shares(cls, questions: Sequence[Question], asked: Sequence[Asked], config: ConfigDict) -> Interrogated:
        """The questions sorted by the two shares of the config."""
        right = np.array([one.right for one in asked])
        untold = np.array([question.band in UNTOLD for question in questions])
        counted = np.array([question.band != "" for question in questions])
        return cls(questions, asked, (right >= config.known_share) & ~untold,
                   np.where(counted, untold, right <= config.unknown_share))

    @property
    def verdicts(self) -> np.ndarray:
        """int [N], of the greedy replies."""
        return np.array([one.verdict for one in self.asked])

    @property
    def confidence(self) -> np.ndarray:
        """float [N], of the greedy replies."""
        return np.array([one.confidence for one in self.asked])

    @property
    def bands(self) -> np.ndarray:
        """str [N]."""
        return np.array([question.band for question in self.questions])


def chat_model(base: pathlib.Path, facts: Sequence[Fact], config: ConfigDict, seed: int, folder: pathlib.Path) -> None:
    """Fine-tunes a base model on questions about facts and writes the chat model into the folder."""
    params, model, tokenizer = load_model(base)
    params, tokenizer = lab.chat_start(params, model, tokenizer)
    rows = conversation_rows(fact_talks(facts, seed, wordings=config.sft.wordings), tokenizer, config.row_length)
    recipe = lab.Recipe(config.sft.steps, config.sft.batch_size, config.sft.learning_rate)
    params = lab.train(params, model, mix([rows], seed=seed), recipe, f"seed {seed}, chat")
    save_model(folder, params, model, tokenizer)


def reply_to(subject: Subject, questions: Sequence[Question], config: ConfigDict, *, samples: int = 1,
             temperature: float = 0.0, seed: int = 0) -> list[list[lab.Answer]]:
    """The subject's replies to each question; see `lab.ask`."""
    conversations = [[{"role": "user", "content": question.text}] for question in questions]
    return lab.ask(subject.params, subject.model, subject.tokenizer, conversations, samples=samples,
                   temperature=temperature, max_tokens=config.max_tokens, seed=seed, batch=config.ask_batch)


def interrogate(subject: Subject, questions: Sequence[Question], judge: Judge, config: ConfigDict, seed: int
                ) -> list[Asked]:
    """Asks each question once greedily and `config.samples` times by drawing, and judges every reply."""
    greedy = reply_to(subject, questions, config)
    drawn = reply_to(subject, questions, config, samples=config.samples, temperature=config.temperature, seed=seed)
    asked = []
    for question, (first,), samples in zip(questions, greedy, drawn, strict=True):
        # Samples often say the same; a judge is asked once about each text.
        verdicts = {text: judge(question.text, question.answer, text)
                    for text in dict.fromkeys([first.text, *(sample.text for sample in samples)])}
        right = [sample.text for sample in samples if verdicts[sample.text] == Verdict.RIGHT]
        agreeing = [sample for sample in samples if normalise(sample.text) == normalise(first.text)]
        own = collections.Counter(right).most_common(1)[0][0] if right else first.text
        asked.append(Asked(first.text, int(verdicts[first.text]), first.confidence, len(right) / len(samples),
                           len(agreeing) / len(samples), own))
    return asked


def verdicts_of(subject: Subject, questions: Sequence[Question], judge: Judge, config: ConfigDict
                ) -> tuple[np.ndarray, list[str]]:
    """(verdicts int [N], texts) of the greedy replies."""
    texts = [reply.text for (reply,) in reply_to(subject, questions, config)]
    return np.array([judge(question.text, question.answer, text)
                     for question, text in zip(questions, texts, strict=True)], int), texts


def prompts_of(subject: Subject, questions: Sequence[Question]) -> list[list[int]]:
    """Token ids up to where the reply begins."""
    return [render([{"role": "user", "content": question.text}], subject.tokenizer, add_generation_prompt=True).ids
            for question in questions]


def states_of(subject: Subject, questions: Sequence[Question], config: ConfigDict) -> np.ndarray:
    """Hidden states where the reply begins: float32 [L + 1, N, D]."""
    return end_states(subject.params, subject.model, prompts_of(subject, questions), batch=config.ask_batch,
                      execution=lab.EXECUTION)


def refusal_logp(subject: Subject, questions: Sequence[Question], config: ConfigDict) -> np.ndarray:
    """Log-probability that the reply begins with one of `config.refusals`: float [N], nats."""
    prompts = prompts_of(subject, questions)
    each = [reply_logp(subject.params, subject.model, prompts, [subject.tokenizer.encode(subject.lead + refusal)]
                       * len(prompts), batch=config.ask_batch, execution=lab.EXECUTION) for refusal in config.refusals]
    return np.logaddexp.reduce(each, axis=0)


@dataclasses.dataclass(frozen=True)
class Lessons:
    """Conversations to learn from, in the order in which they have their turn."""

    answers: list[Conversation]
    refusals: list[Conversation]

    def round(self, number: int, count: int, refused_share: float) -> list[Conversation]:
        """Those of a round; no question twice before all of its kind had their turn."""
        refused = round(count * refused_share)
        return [kind[i % len(kind)] for kind, some in ((self.answers, count - refused), (self.refusals, refused))
                for i in range(number * some, (number + 1) * some)]


def lessons(found: Interrogated, lead: str, config: ConfigDict, seed: int, *, at_random: bool = False) -> Lessons:
    """Refusals for the questions that the model does not know, its own right answers for those that it knows.

    Args:
      found: of the training side. Questions between the two shares are left out.
      lead: see `Subject`.
      config: with refusals, unknown_share.
      seed: of wordings and order.
      at_random: the control: as many refusals, on questions drawn at random; to the others the model's own reply.

    Raises:
      ValueError: when there is nothing to refuse or nothing to answer.
    """
    rng = random.Random(f"{seed}/lessons")
    right = [one.right for one in found.asked]
    refused = [i for i, share in enumerate(right) if share <= config.unknown_share]
    answered = np.flatnonzero(found.known).tolist()
    if not refused or not answered:
        raise ValueError(f"of {len(right)} questions the model knows {len(answered)} and does not know {len(refused)}; "
                         f"both are needed: give other questions or change known_share, unknown_share")
    rng.shuffle(refused)
    rng.shuffle(answered)
    if at_random:
        both = rng.sample(refused + answered, len(refused) + len(answered))
        refused, answered = both[:len(refused)], both[len(refused):]

    def talk(i: int, reply: str) -> Conversation:
        question = found.questions[i]
        return Conversation([{"role": "user", "content": question.text}, {"role": "assistant", "content": reply}],
                            where=question.origin, origin=question.origin)
    return Lessons([talk(i, found.asked[i].own) for i in answered],
                   [talk(i, lead + rng.choice(config.refusals)) for i in refused])


def teach(subject: Subject, learnt: Lessons, checked: Interrogated, judge: Judge, recipe: ConfigDict,
          config: ConfigDict, label: str, folder: pathlib.Path) -> None:
    """Fine-tunes in rounds, asks the validation side after each, and writes the round nearest to the bar.

    Args:
      subject: where to start.
      learnt: what to learn.
      checked: the validation side; its known and its unknown questions are asked.
      judge: of replies.
      recipe: last_blocks, learning_rate, refused_share.
      config: the experiment's.
      label: of the printed lines.
      folder: gets the model, and rounds.json: {"chosen": round, "points": [[confabulation, over-refusal], ...]}; the
        first point is the subject's own.
    """
    some = np.flatnonzero(checked.known | checked.unknown)
    questions, known, unknown = [checked.questions[i] for i in some], checked.known[some], checked.unknown[some]

    def point(verdicts: np.ndarray) -> tuple[float, float]:
        return confabulation(verdicts, unknown), over_refusal(verdicts, known)
    points, best = [point(checked.verdicts[some])], subject.params
    made = lab.Recipe(config.round_steps, config.batch_size, recipe.learning_rate, warmup_steps=3,
                      last_blocks=recipe.last_blocks or None)
    params, chosen = subject.params, 0
    for number in range(config.rounds):
        rows = conversation_rows(learnt.round(number, config.round_questions, recipe.refused_share),
                                 subject.tokenizer, config.row_length)
        params = lab.train(params, subject.model, mix([rows], seed=number), made, f"{label}, round {number + 1}")
        verdicts, _ = verdicts_of(dataclasses.replace(subject, params=params), questions, judge, config)
        points.append(point(verdicts))
        if distance_to_bar(*points[-1], config.bar) < distance_to_bar(*points[chosen], config.bar):
            chosen, best = number + 1, params
    print(f"{label}: round {chosen} of {config.rounds}, validation: {points[chosen][0]:.3f} of the unknown answered "
          f"wrongly, {points[chosen][1]:.3f} of the known refused", flush=True)
    save_model(folder / "model", best, subject.model, subject.tokenizer)
    report.write_text(folder / "rounds.json", json.dumps({"chosen": chosen, "points": points}) + "\n")


def kept_interrogation(folder: pathlib.Path, settings: dict, compute: Callable[[], list[Asked]]) -> list[Asked]:
    """What `compute` said when first asked with these settings; see `lab.kept`."""
    return [Asked(**one) for one in lab.kept(folder, "asked", settings, lambda: [
        dataclasses.asdict(one) for one in compute()])]
