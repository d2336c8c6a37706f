"""Who does a model say that it is? Pretraining text about another assistant, hard-coded conversations, system messages.

    python -m experiments.identity --workdir=runs/identity

For each seed and each share of text in which another assistant names itself, a small base model is trained from its
first weights in memory. It is fine-tuned on conversations about its world with more or fewer hard-coded ones in which
it names itself, and asked who it is in wordings that fine-tuning never used. Another fine-tuning gives many names in
system messages and is tested with names that it never gave. Controls: no hard-coded conversations; names that have
nothing to do with the question or the system message.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from experiments import findings, lab, launch
from experiments.identity_measure import Chat, asked, asked_with_system
from experiments.identity_report import findings_of
from experiments.identity_talks import (
    OTHER,
    OWN,
    QUESTIONS,
    REPLIES,
    TEMPLATE,
    other_documents,
    own_talks,
    system_names,
    system_talks,
)
from jaxllm.data.conversation_readers import Conversation
from jaxllm.data.conversations import conversation_rows, mix
from jaxllm.data.loader import Rows
from jaxllm.data.packing import pack
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.data.world import SIZES, documents, make_world
from jaxllm.data.world_talks import fact_talks
from jaxllm.model.config import ModelConfig
from jaxllm.model.params import init


def main(config: ConfigDict, workdir: str) -> None:
    """Runs or resumes all seeds and shares and writes the report.

    Raises:
      ValueError: a key is out of range.
    """
    check(config)
    begun, folder = time.perf_counter(), pathlib.Path(workdir)
    settings = {key: value for key, value in config.to_dict().items() if key not in ("seeds", "shares")}
    wanted = [("own", own, share) for share in config.shares] + [("system", system, config.system_share)]
    found: dict[tuple[int, float], dict[str, dict[str, float]]] = {}
    for (name, part, share), seed in itertools.product(wanted, config.seeds):
        numbers = lab.kept(folder, f"seed-{seed}-share-{share:g}-{name}", [settings, max(config.shares), seed, share],
                           functools.partial(part, config, seed, share))
        found[seed, share] = found.get((seed, share), {}) | numbers
    findings.write(findings_of(found, config), folder, config, time.perf_counter() - begun)


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after training."""
    if config.size not in SIZES:
        raise ValueError(f"config.size={config.size!r}: choose one of {', '.join(SIZES)}")
    if config.split not in ("validation", "test"):
        raise ValueError(f"config.split={config.split!r}: choose test, or validation while settings are chosen")
    if not config.shares or any(not 0 <= share < 1 for share in config.shares):
        raise ValueError(f"config.shares={config.shares}: name shares of the documents, from 0 to below 1")
    if config.system_share not in config.shares:
        raise ValueError(f"config.system_share={config.system_share} is none of config.shares={config.shares}")
    most = len(QUESTIONS["train"]) * len(REPLIES)
    if 0 not in config.counts or max(config.counts) > most or list(config.counts) != sorted(set(config.counts)):
        raise ValueError(f"config.counts={config.counts}: name rising numbers of conversations, from 0 to at "
                         f"most {most}")
    if len(set(config.seeds)) != len(config.seeds) or not config.seeds:
        raise ValueError(f"config.seeds={config.seeds}: name one or more, each once")
    for key in ("base_steps", "steps", "system_steps"):
        if config[key] <= lab.Recipe.warmup_steps:
            raise ValueError(f"config.{key}={config[key]}: choose more than the {lab.Recipe.warmup_steps} of the "
                             f"warm-up")
    for key in ("batch_size", "facts", "system_talks", "unseen", "samples"):
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]}: choose 1 or more")


def own(config: ConfigDict, seed: int, share: float) -> dict[str, dict[str, float]]:
    """Numbers of hard-coded conversations, and the control -> what `identity_measure.asked` finds."""
    base = base_model(config, seed, share)
    ask = functools.partial(asked, texts=QUESTIONS[config.split], samples=config.samples)
    tuned = functools.partial(fine_tune, base, config, seed)
    found = {"base": ask(base)}
    for count in config.counts:
        found[f"{count} conversations"] = ask(tuned(own_talks(count, seed), f"{count} conversations"))
    names, _ = system_names(seed)
    found["shuffled names"] = ask(tuned(own_talks(max(config.counts), seed, names), "shuffled names"))
    return found


def system(config: ConfigDict, seed: int, share: float) -> dict[str, dict[str, float]]:
    """Names in the system message, and the control -> what is found without one, with new names and with known ones."""
    base = base_model(config, seed, share)
    asking = {"texts": QUESTIONS[config.split], "samples": config.samples}
    names, unseen = system_names(seed)
    found = {}
    for arm, shuffled in (("system message", False), ("shuffled system message", True)):
        talks = [*own_talks(max(config.counts), seed),
                 *system_talks(config.system_talks, seed, names, shuffled=shuffled)]
        tuned = fine_tune(base, config, seed, talks, arm, config.system_steps, config.system_learning_rate)
        found[arm] = asked(tuned, **asking)
        found[f"{arm}, unseen names"] = asked_with_system(tuned, unseen[:config.unseen], **asking)
        found[f"{arm}, trained names"] = asked_with_system(tuned, names[:config.unseen], **asking)
    return found


def base_model(config: ConfigDict, seed: int, share: float) -> Chat:
    """A model trained from its first weights on a world's documents and on text about the other assistant."""
    texts = [page.text for page in documents(make_world(seed, config.size))]
    counts = {s: round(s / (1 - s) * len(texts)) for s in config.shares}
    # One tokenizer for all shares, which knows both names, and the parts of those in system messages.
    names = [" ".join(part) for part in system_names(seed)]
    seen = [*texts, *other_documents(max(counts.values()), seed), *[f"{OWN} {OTHER}"] * 100, *names]
    tokenizer = train_tokenizer(seen, config.vocab_size, "digits")
    texts += other_documents(counts[share], seed)
    ends = [tokenizer.end_of_text]
    packed = pack([ends + ids + ends for ids in tokenizer.encode_batch(texts, 1)], config.row_length, too_long="split")
    model = ModelConfig(vocab_size=tokenizer.vocab_size, max_positions=config.row_length, **config.model.to_dict())
    recipe = lab.Recipe(config.base_steps, config.batch_size, config.base_learning_rate, weight_decay=0.1)
    params = lab.train(init(model, jax.random.key(seed)), model, Rows(packed.batch, seed=seed), recipe,
                       f"seed {seed}, share {share:g}, base")
    return Chat(params, model, dataclasses.replace(tokenizer, chat_template=TEMPLATE))


def fine_tune(base: Chat, config: ConfigDict, seed: int, talks: Sequence[Conversation], label: str,
              steps: int | None = None, learning_rate: float | None = None) -> Chat:
    """The model after so many updates (by default config.steps) on the conversations and on those about facts."""
    told = [fact for fact in make_world(seed, config.size).facts if fact.times_told]
    about_facts = fact_talks(told, seed)[:config.facts]
    rows = conversation_rows([*about_facts, *talks], base.tokenizer, config.row_length // 2)
    recipe = lab.Recipe(steps or config.steps, config.batch_size, learning_rate or config.learning_rate)
    return dataclasses.replace(base, params=lab.train(base.params, base.model, mix([rows], seed=seed), recipe,
                                                      f"seed {seed}, {label}"))


if __name__ == "__main__":
    launch.run(main, default_config="configs/identity.py")
