"""Asks a model what it knows, teaches it to refuse the rest, and measures confabulation against refusal.

    python -m experiments.interrogate
    python -m experiments.interrogate --config=configs/interrogate.py:models/smollm2 --config.text=articles.txt

For each seed: a chat model, questions with known answers, samples, verdicts; refusals for what it does not know among
its own answers to what it does; rounds of fine-tuning; then other questions, with controls and a probe. Every stage is
kept, so that a killed run goes on.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import findings, interrogate_report, lab, launch, report
from experiments.interrogate_api import ModelJudge, connect
from experiments.interrogate_model import (
    Interrogated,
    Subject,
    chat_model,
    interrogate,
    kept_interrogation,
    lessons,
    refusal_logp,
    states_of,
    teach,
    verdicts_of,
)
from experiments.interrogate_questions import SIDES, text_sides, world_of, world_sides
from experiments.interrogate_report import SeedRun
from jaxllm.data.curate.quality import auc
from jaxllm.data.world import BANDS
from jaxllm.evals.factuality import (
    Judge,
    Verdict,
    choose_threshold,
    distance_to_bar,
    refuse_below,
    verifier,
)
from jaxllm.evals.probe import probe
from jaxllm.evals.questions import Question

# What each stage depends on, besides the seed.
CHAT = ("base", "model", "sft", "row_length")
ASK = (*CHAT, "split", "text", "text_key", "wordings", "held_out_wording", "most", "samples", "temperature",
       "max_tokens", "refusals", "api")
TEACH = (*ASK, "rounds", "round_questions", "round_steps", "batch_size", "unknown_share", "known_share", "bar")
PROBE = (*ASK, "probe_l2", "probe_folds", "probe_shuffles")


def main(config: ConfigDict, workdir: str) -> None:
    """Runs every seed and writes the report.

    Raises:
      ValueError: a key is out of range, or the questions are too few.
      OSError: no model, no text, or no server where the config says.
    """
    check(config)
    begun = time.perf_counter()
    folder = pathlib.Path(workdir)
    runs = [Seed(config, seed, folder / "stages").run() for seed in config.seeds]
    lines = [json.dumps(line, ensure_ascii=False) for run in runs for line in interrogate_report.replies(run)]
    report.write_text(folder / "replies.jsonl", "\n".join(lines) + "\n")
    findings.write(interrogate_report.make(runs, config), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after minutes."""
    for key, least in (("rounds", 1), ("round_questions", 2), ("round_steps", 4), ("samples", 1), ("max_tokens", 1),
                       ("wordings", 1), ("batch_size", 1), ("ask_batch", 1), ("probe_folds", 2), ("probe_shuffles", 1)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    for key, least in (("steps", 11), ("batch_size", 1), ("wordings", 1)):
        if config.sft[key] < least:
            raise ValueError(f"config.sft.{key}={config.sft[key]}: choose {least} or more")
    if config.sft.once < 0:
        raise ValueError(f"config.sft.once={config.sft.once}: choose 0 or more")
    for key in ("seeds", "refusals", "recipes", "probe_l2"):
        if not len(config[key]):
            raise ValueError(f"config.{key} is empty: give at least one")
    if not 0 <= config.unknown_share < config.known_share <= 1:
        raise ValueError(f"config.unknown_share={config.unknown_share} must lie below config.known_share="
                         f"{config.known_share}, both in [0, 1]")
    if len(config.split) != 2 or min(config.split) <= 0 or sum(config.split) >= 1:
        raise ValueError(f"config.split={config.split}: give the shares of training and validation, both above 0, and "
                         f"leave something for the test")
    if len(config.bar) != 2 or min(config.bar) <= 0:
        raise ValueError(f"config.bar={config.bar}: give two rates above 0")
    if not set(config.sft.bands) <= set(BANDS[:-1]) or not config.sft.bands:
        raise ValueError(f"config.sft.bands={config.sft.bands}: choose among {', '.join(BANDS[:-1])}")
    for name, recipe in config.recipes.items():
        if not 0 < recipe.refused_share < 1:
            raise ValueError(f"config.recipes.{name}.refused_share={recipe.refused_share} must lie between 0 and 1")
        if recipe.last_blocks < 0:
            raise ValueError(f"config.recipes.{name}.last_blocks={recipe.last_blocks}: 0 is all of the model")
    if config.text and not config.model:
        raise ValueError("config.text asks about paragraphs, which the world's model has not read: give config.model, "
                         "a chat model's folder")
    if not config.text:
        for seed in config.seeds:
            world_of(config, seed)


class Seed:
    """One seed's run, stage by stage."""

    def __init__(self, config: ConfigDict, seed: int, folder: pathlib.Path) -> None:
        self.config, self.seed, self.folder = config, seed, folder
        self.asked_what = ""  # a hash of the questions, once they are made
        fallback = verifier(config.refusals)
        self.judge: Judge = fallback
        if config.api.judge:
            self.judge = ModelJudge(connect(config.api, config.api.judge), fallback, config.api.attempts)

    def settings(self, keys: tuple[str, ...], **more: Any) -> dict[str, Any]:
        """What a stage depends on, for its name."""
        made_from = {key: self.config.to_dict()[key] for key in keys}
        return {**made_from, "seed": self.seed, "asked": self.asked_what, **more}

    def run(self) -> SeedRun:
        """Everything that is measured for this seed."""
        config, seed = self.config, self.seed
        subject = self.subject()
        for name, recipe in config.recipes.items():
            if recipe.last_blocks > subject.model.layers:
                raise ValueError(f"config.recipes.{name}.last_blocks={recipe.last_blocks}: the model has "
                                 f"{subject.model.layers} blocks; 0 is all of the model")
        sides = text_sides(config, seed) if config.text else world_sides(world_of(config, seed), config, seed)
        self.asked_what = lab.key_of({side: [dataclasses.astuple(one) for one in sides[side]] for side in SIDES})
        found = {side: self.interrogated(subject, side, questions) for side, questions in sides.items()}
        print(f"seed {seed}: " + ", ".join(f"{side} {len(one.questions)} questions ({one.known.sum()} known, "
                                           f"{one.unknown.sum()} unknown)" for side, one in found.items()), flush=True)
        for side in ("validation", "test"):
            if not found[side].known.any() or not found[side].unknown.any():
                raise ValueError(f"the {side} side has {found[side].known.sum()} known and {found[side].unknown.sum()} "
                                 f"unknown questions; nothing can be said without some of both: ask more "
                                 f"(config.most.{side}), or train the model longer")
        rounds = {name: self.taught(subject, found, name, at_random=False) for name in config.recipes}
        chosen = min(rounds, key=lambda name: distance_to_bar(*best_point(rounds[name][1]), config.bar))
        random_rounds = self.taught(subject, found, chosen, at_random=True)
        after = self.after(subject, rounds[chosen][0], found["test"])
        control = self.after(subject, random_rounds[0], found["test"])
        probed = lab.kept(self.folder, "probe", self.settings(PROBE), lambda: self.probe(subject, found))
        test, checked = found["test"], found["validation"]
        if isinstance(self.judge, ModelJudge):
            print(f"seed {seed}: {self.judge.judged} verdicts by {config.api.judge}; {self.judge.unread} could not be "
                  f"read and are the verifier's", flush=True)
        threshold = choose_threshold(checked.confidence, checked.verdicts, checked.known, checked.unknown, config.bar)
        return SeedRun(
            seed, test, recipe=chosen, rounds={name: record for name, (_, record) in rounds.items()},
            random_rounds=random_rounds[1], validation=checked, after_texts=after["texts"],
            verdicts={"before": test.verdicts, "refusals": np.array(after["verdicts"]),
                      "random refusals": np.array(control["verdicts"]),
                      "threshold": refuse_below(test.confidence, test.verdicts, threshold)},
            scores={"own probability": test.confidence,
                    "agreement of samples": np.array([one.agreement for one in test.asked]),
                    **({"probe": -np.array(probed["scores"])} if probed["layers"] else {}),
                    "taught to refuse": -np.array(after["refusal_logp"]),
                    "random refusals": -np.array(control["refusal_logp"])},
            layers=probed["layers"])

    def subject(self) -> Subject:
        """The model before: given, or made of the base."""
        config, seed = self.config, self.seed
        if config.model:
            return Subject.load(config.model.format(seed=seed), "" if config.text else " ")
        world = world_of(config, seed)
        facts = [fact for band in config.sft.bands for fact in world.select(band, "person")]
        tail = world.select("once", "person")
        facts += random.Random(f"{seed}/chat").sample(tail, min(len(tail), round(config.sft.once * len(facts))))
        folder = lab.stage(self.folder, f"chat{seed}", self.settings(CHAT), lambda folder: chat_model(
            lab.base_model(config.base, seed), facts, config, seed, folder / "model"))
        return Subject.load(folder, " ")

    def interrogated(self, subject: Subject, side: str, questions: list[Question]) -> Interrogated:
        """The side's questions with what the model said to them."""
        asked = kept_interrogation(self.folder, self.settings(ASK, side=side), lambda: interrogate(
            subject, questions, self.judge, self.config, self.seed))
        return Interrogated.by_shares(questions, asked, self.config)

    def taught(self, subject: Subject, found: dict[str, Interrogated], name: str, at_random: bool
               ) -> tuple[pathlib.Path, dict[str, Any]]:
        """(folder, rounds.json) of the model taught by a recipe."""
        config, recipe = self.config, self.config.recipes[name]
        label = f"seed {self.seed}, {name}" + (", random refusals" if at_random else "")

        def make(folder: pathlib.Path) -> None:
            learnt = lessons(found["train"], subject.lead, config, self.seed, at_random=at_random)
            teach(subject, learnt, found["validation"], self.judge, recipe, config, label, folder)
        folder = lab.stage(self.folder, f"{'random' if at_random else name}{self.seed}", self.settings(
            TEACH, recipe=recipe.to_dict(), at_random=at_random), make)
        return folder, json.loads((folder / "rounds.json").read_text(encoding="utf-8"))

    def after(self, subject: Subject, folder: pathlib.Path, test: Interrogated) -> dict[str, Any]:
        """Verdicts and texts of a taught model's replies to the test, and log P(refusal) before each reply."""
        def compute() -> dict[str, Any]:
            taught = Subject.load(folder, subject.lead)
            verdicts, texts = verdicts_of(taught, test.questions, self.judge, self.config)
            return {"verdicts": verdicts.tolist(), "texts": texts, "refusal_logp": refusal_logp(
                taught, test.questions, self.config).tolist()}
        return lab.kept(self.folder, "after", {"stage": folder.name}, compute)

    def probe(self, subject: Subject, found: dict[str, Interrogated]) -> dict[str, Any]:
        """AUC of a probe of each layer on the test side, and with shuffled labels; scores of the chosen layer.

        No layers where all answers on the training side are right, or all wrong.
        """
        config, train, test = self.config, found["train"], found["test"]
        if len(set(train.verdicts == Verdict.RIGHT)) < 2:
            return {"layers": [], "scores": []}
        states, test_states = (states_of(subject, one.questions, config) for one in (train, test))
        wrong, test_wrong = train.verdicts != Verdict.RIGHT, test.verdicts != Verdict.RIGHT
        origins = [question.origin for question in train.questions]
        bands = np.unique(test.bands, return_inverse=True)[1]
        layers, scores = [], []
        for layer in range(len(states)):
            made = probe(states[layer], wrong, origins, test_states[layer], l2s=config.probe_l2,
                         folds=config.probe_folds, seed=self.seed)
            shuffled = [auc(probe(states[layer], np.random.default_rng(i).permutation(wrong), origins,
                                  test_states[layer], l2s=(made.l2,), folds=config.probe_folds, seed=self.seed).scores,
                            test_wrong) for i in range(config.probe_shuffles)]
            scores.append(made.scores)
            layers.append({"fold_auc": made.fold_auc, "auc": auc(made.scores, test_wrong),
                           "within_bands": auc(made.scores, test_wrong, bands), "shuffled": shuffled})
        best = max(range(len(layers)), key=lambda layer: np.nan_to_num(layers[layer]["fold_auc"], nan=-1.0))
        print(f"seed {self.seed}: probe of layer {best}, AUC {layers[best]['auc']:.3f}", flush=True)
        return {"layers": layers, "scores": scores[best].tolist()}


def best_point(record: dict[str, Any]) -> tuple[float, float]:
    """(confabulation, over-refusal) on the validation side of the round that was taken."""
    return tuple(record["points"][record["chosen"]])


if __name__ == "__main__":
    launch.run(main, default_config="configs/interrogate.py")
