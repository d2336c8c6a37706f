"""What the road's own stages measure: of the web that was kept, of tokens, of the base model and of the assistant."""

from __future__ import annotations

import collections
import itertools
import json
import math
import pathlib
import random
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from experiments import convert, corpus, curation_report, lab, train_tokenizer
from experiments.claims import Claim, of_values
from experiments.speedrun_road import Road
from jaxllm.data.sources import open_source
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.data.tokenizer import train_tokenizer as train_bpe
from jaxllm.data.world import BANDS, make_world
from jaxllm.data.world_table import Fact
from jaxllm.evals.factuality import Verdict, verifier
from jaxllm.evals.loglikelihood import LanguageModel, loglikelihoods
from jaxllm.infer.generate import generate
from jaxllm.infer.sampling import SamplingSettings
from jaxllm.train.checkpoint import load_model

DOCUMENTS = 200  # held-out documents that bytes and bits are measured on
TOKENS = 120  # of each, from its beginning
COUNTED = 20_000_000  # tokens of the training text that are counted, at most


def kept_pages(run: pathlib.Path, web: pathlib.Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """(pages that a curation kept, all pages) by kind.

    Args:
      run: folder of the curation.
      web: folder of the made-up web, with truth.jsonl.
    """
    with open(web / "truth.jsonl", encoding="utf-8") as lines:
        kinds = {row["url"]: row["kind"] for row in map(json.loads, lines)}
    urls = {row["metadata"]["url"] for row in curation_report.documents(run / "documents", len(kinds))}
    return collections.Counter(kinds[url] for url in urls), collections.Counter(kinds.values())


def bytes_per_token(settings: ConfigDict, folder: pathlib.Path, seed: int) -> tuple[Claim, str]:
    """Bytes a token on held-out documents, beside a tokenizer of as many merges learnt from shuffled characters.

    Args:
      settings: of experiments.train_tokenizer.
      folder: the tokenizer that it trained.
      seed: of the shuffling.

    Returns:
      the claim, and a sentence with its tokens apart.
    """
    documents, share = open_source(settings.source, text_key=settings.text_key), settings.heldout_percent
    ours, rng = load_tokenizer(folder), random.Random(seed)
    shuffled = ("".join(rng.sample(text, len(text))) for text in train_tokenizer.limited(
        train_tokenizer.texts(documents, share, heldout=False), settings.max_characters))
    control = train_bpe(shuffled, settings.vocab_size, settings.pattern, tuple(settings.special_tokens))
    held_out = list(itertools.islice(train_tokenizer.texts(documents, share, heldout=True), DOCUMENTS))

    def of(tokenizer: Tokenizer) -> list[float]:
        return [len(text.encode()) / len(tokenizer.encode(text)) for text in held_out]

    sentence = held_out[0].split(".")[0]
    return (of_values("Merging frequent neighbours packs text that was not read into fewer tokens",
                      "bytes a token", of(ours), "as many merges of the same characters in random order", of(control),
                      of="documents", digits=2), "·".join(ours.decode([token]) for token in ours.encode(sentence)))


def held_out(settings: ConfigDict, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """The first tokens of documents that the base model has not read, and all tokens that it may have read.

    Args:
      settings: of experiments.pretrain.
      seed: of the order of the rows.
    """
    data = ConfigDict({**settings.data.to_dict(), "sources": tuple(
        spec.format(seed=seed) for spec in settings.data.sources)})
    made = corpus.prepare(data, settings.row_length, seed)
    (source,) = made.validation.values()
    shards = source.shards
    ends = shards.document_ends(0, shards.tokens)
    documents = [shards.read(int(a), int(b - a))[:TOKENS].tolist() for a, b in itertools.pairwise([0, *ends])]
    training = made.training.shards
    return [ids for ids in documents if len(ids) > 1][:DOCUMENTS], training.read(0, min(training.tokens, COUNTED))


def bits_per_byte(run: pathlib.Path, settings: ConfigDict, seed: int) -> Claim:
    """Bits a byte of the beginnings of held-out documents, under the base model and under counts of three tokens."""
    params, model, tokenizer = load_model(run)
    documents, training = held_out(settings, seed)
    scored = loglikelihoods(LanguageModel(params, model, tokenizer, lab.EXECUTION),
                            [(ids[:1], ids[1:]) for ids in documents])
    sizes = [len(tokenizer.decode(ids[1:]).encode()) * math.log(2) for ids in documents]
    ours = [-one.logp / size for one, size in zip(scored, sizes, strict=True)]
    counts = [-logp / size for logp, size in zip(trigram_logp(training, documents, model.vocab_size), sizes,
                                                 strict=True)]
    return of_values("Predicting the next token learns more than which tokens follow each other",
                     "bits a byte of held-out text", ours, "counts of three tokens, of the same text", counts,
                     of="documents", less=True)


def trigram_logp(training: np.ndarray, documents: Sequence[Sequence[int]], vocab: int,
                 weights: Sequence[float] = (0.7, 0.2, 0.09, 0.01)) -> list[float]:
    """log P, nats, of all but the first token of each document by interpolated counts.

    p(c | a, b) = w3 n(abc)/n(ab) + w2 n(bc)/n(b) + w1 n(c)/n + w0/V, the weights of a context never seen going to the
    next shorter one.

    References: Jelinek and Mercer, Interpolated estimation of Markov source parameters, 1980.
    """
    ids = training.tolist()
    grams = [collections.Counter(zip(*(ids[i:] for i in range(n)), strict=False)) for n in (1, 2, 3)]

    def logp(document: Sequence[int]) -> float:
        total = 0.0
        for place in range(1, len(document)):
            p, left = 0.0, 0.0  # weight of contexts that were not seen
            for n, weight in zip((3, 2, 1), weights, strict=False):
                gram = tuple(document[max(place - n + 1, 0):place + 1])
                seen = len(ids) if n == 1 else grams[n - 2][gram[:-1]] if len(gram) == n else 0
                if not seen:
                    left += weight
                    continue
                p += (weight + left) * grams[n - 1][gram] / seen
                left = 0.0
            total += math.log(p + weights[3] / vocab)
        return total

    return [logp(document) for document in documents]


def recalled(run: pathlib.Path, config: ConfigDict, asked: ConfigDict
             ) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    """How often the base model goes on with the truth behind "Q: ... A:", by band; and a question of each band."""
    params, model, tokenizer = load_model(run)
    found, samples = {}, []
    for band in BANDS:
        facts = people(config, band, asked.questions)
        prompts = [f"Q: {fact.question()} A:" for fact in facts]
        ids = [[tokenizer.begin_of_text, *tokenizer.encode(prompt)] for prompt in prompts]
        rows = generate(params, model, ids, max_tokens=asked.max_tokens, key=config.seed, batch=len(ids),
                        settings=SamplingSettings(temperature=0.0), valid_vocab=tokenizer.vocab_size,
                        execution=lab.EXECUTION).rows()
        texts = [tokenizer.decode(row) for row in rows]
        found[band] = (sum(text.strip().lower().startswith(fact.value.lower()) for text, fact in zip(
            texts, facts, strict=True)), len(facts))
        samples.append((f"told {band}: {prompts[0]}", texts[0].strip().partition("\n")[0]))
    return found, samples


def people(config: ConfigDict, band: str, count: int) -> list[Fact]:
    """So many facts of people told so often, drawn by the road's seed."""
    facts = make_world(config.seed, config.size).select(band, "person")
    return random.Random(f"{config.seed}/{band}").sample(facts, min(count, len(facts)))


def right_in_chat(road: Road, folder: pathlib.Path, count: int) -> tuple[int, int, int]:
    """(right answers of the assistant, of the base asked in the same chat format, questions) about facts told often."""
    facts, judge = people(road.config, "often", count), verifier()
    talks = [[{"role": "user", "content": fact.question()}] for fact in facts]

    def right(params, model, tokenizer) -> int:
        replies = lab.ask(params, model, tokenizer, talks, max_tokens=24, batch=len(talks))
        return sum(judge(fact.question(), fact.value, reply[0].text) == Verdict.RIGHT and reply[0].ended
                   for fact, reply in zip(facts, replies, strict=True))

    params, model, tokenizer = load_model(road.output("pretrain"))
    started, chat = lab.chat_start(params, model, tokenizer)
    return right(*load_model(folder)), right(started, model, chat), len(facts)


def exported(road: Road, folder: pathlib.Path) -> Mapping[str, pathlib.Path]:
    """The assistant written for others, by what it is: two GGUF files and a Hugging Face folder."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    files = {"Q8_0": folder / "assistant.Q8_0.gguf", "Q4_0": folder / "assistant.Q4_0.gguf",
             "hugging_face": folder / "hugging_face"}
    for scheme, target in files.items():
        settings = road.settings("export")
        settings.target = str(target)
        settings.gguf = scheme if target.suffix else "F16"
        convert.main(settings, str(folder))
    return files


def drift(road: Road, eight: pathlib.Path, four: pathlib.Path) -> Claim:
    """How far the replies' log-probabilities are from the assistant's in a file that was written and read back."""
    params, model, tokenizer = load_model(road.output("sft"))
    documents, _ = held_out(road.settings("pretrain"), road.config.seed)
    asked = [(ids[:1], ids[1:]) for ids in documents]

    def logp(params, model) -> np.ndarray:
        scored = loglikelihoods(LanguageModel(params, model, tokenizer, lab.EXECUTION), asked)
        return np.array([one.logp / one.tokens for one in scored])

    own = logp(params, model)
    read = [convert.from_gguf_file(path, None) for path in (eight, four)]
    far = [np.abs(logp(one.params, one.config) - own).tolist() for one in read]
    return of_values("What is written for other programs is the same model, but for the rounding",
                     "change of log P, nats a token, 8 bits", far[0], "4 bits", far[1], of="documents", less=True,
                     digits=5)
