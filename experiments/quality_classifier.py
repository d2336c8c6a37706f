"""Trains a quality classifier on labelled documents: held-out AUC, its controls, its cost per document.

    python -m experiments.quality_classifier --config=configs/quality_classifier.py:labels.jsonl --workdir=runs/quality
"""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import launch, report
from jaxllm.data.curate.quality import (
    LOSSES,
    Labelled,
    QualityClassifier,
    auc,
    auc_interval,
    fold_of,
    load_classifier,
    read_labelled,
)
from jaxllm.data.curate.quality_features import HashedWords, PooledStates
from jaxllm.data.curate.quality_head import fit_head, mean_pool, out_of_fold
from jaxllm.data.sources import open_source
from jaxllm.model.transformer import hidden_states
from jaxllm.train.checkpoint import load_model


def main(config: ConfigDict, workdir: str) -> None:
    """Cross-validates, fits on everything, writes `workdir/classifier` and the report.

    Raises:
      ValueError: a key is out of range, or the labels are unusable.
      FileNotFoundError: no labels or no model where the config says.
    """
    check(config)
    workdir = pathlib.Path(workdir)
    documents = read(config)
    texts = [document.text for document in documents]
    labels = np.array([document.label for document in documents])
    positive = labels >= config.positive_from
    if min(positive.sum(), (~positive).sum()) < config.folds:
        raise ValueError(f"{config.labels}: {positive.sum()} documents with a label of at least config.positive_from="
                         f"{config.positive_from} and {(~positive).sum()} below; {config.folds} folds need as many of "
                         f"each")
    make_features = make_featurizer(config)
    features = make_features(texts)
    targets = positive.astype(np.float32) if config.loss == "logistic" else labels
    settings = {key: config[key] for key in ("loss", "l2", "max_steps", "tolerance")}
    measured, scores = evaluate(config, texts, features, targets, positive, settings)

    head = fit_head(features, targets, **settings)
    workdir.mkdir(parents=True, exist_ok=True)
    QualityClassifier(make_features, head.weights, head.bias, config.loss).save(workdir / "classifier")
    measured |= {"fit_steps": head.steps, "fit_gradient_norm": head.gradient_norm,
                 **cost(load_classifier(workdir / "classifier", open_model), texts, config.timing_passes)}
    rows = [json.dumps({"document": i, "label": float(labels[i]), "scores": scores[:, i].tolist()})
            for i in range(len(texts))]
    report.write_text(workdir / "scores.jsonl", "\n".join(rows) + "\n")
    report.write_text(workdir / "report.json", json.dumps(measured, indent=2) + "\n")
    report.write_text(workdir / "report.md", markdown(measured))
    curve = report.curves([roc("classifier, seed " + str(seed), s, positive)
                           for seed, s in zip(config.seeds, scores, strict=True)]
                          + [("chance", [0, 1], [0, 1])], x_label="bad texts kept", y_label="good texts kept")
    report.write_text(workdir / "report.html", report.page(
        "Quality classifier", f"{config.labels} · {measured['device']}",
        [("What is kept at each threshold, held-out scores", curve),
         ("Measured", report.table(list(measured.items()))),
         ("Settings", report.table(sorted(config.to_dict().items())))]))
    print(markdown(measured) + f"\nwritten: {workdir}/classifier, scores.jsonl, report.md, report.json, report.html")


def check(config: ConfigDict) -> None:
    """Refuses what would fail only after the features are made."""
    if config.loss not in LOSSES:
        raise ValueError(f"config.loss={config.loss!r}: choose one of {', '.join(LOSSES)}")
    for key, least in (("folds", 2), ("permutations", 0), ("bootstrap_samples", 1), ("timing_passes", 1),
                       ("max_steps", 1), ("l2", 0)):
        if config[key] < least:
            raise ValueError(f"config.{key}={config[key]}: choose {least} or more")
    if not config.seeds:
        raise ValueError("config.seeds=(): name at least one seed")


def read(config: ConfigDict) -> list[Labelled]:
    """The labelled documents, those of the world by their style."""
    if not config.labels.startswith("world:"):
        return read_labelled(config.labels, config.text_key, config.label_key)
    return [Labelled(page.text, float(page.metadata["style"] in config.good_styles))
            for page in open_source(config.labels)]


def make_featurizer(config: ConfigDict) -> HashedWords | PooledStates:
    """The features that the config asks for."""
    if not config.model:
        return HashedWords(config.bits, config.max_characters)
    pool, tokenizer, longest = _open(config.model)
    if config.max_tokens > longest:
        raise ValueError(f"config.max_tokens={config.max_tokens}: {config.model} has {longest} positions")
    return PooledStates(pool, tokenizer, config.model, config.max_tokens, config.batch_size, config.max_characters)


def open_model(folder: str) -> tuple[Callable, Any]:
    """A model folder as `jaxllm.data.curate.quality.load_classifier` and the step QualityScore want it."""
    return _open(folder)[:2]


@functools.cache
def _open(folder: str) -> tuple[Callable, Any, int]:
    params, model, tokenizer = load_model(folder)

    @jax.jit
    def pool(tokens: jax.Array, counts: jax.Array) -> jax.Array:
        return mean_pool(hidden_states(params, model, tokens), counts)
    return pool, tokenizer, model.max_positions


def evaluate(config: ConfigDict, texts: list[str], features: Any, targets: np.ndarray, positive: np.ndarray,
             settings: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """The measured numbers, and held-out scores [seeds, documents]."""
    folds = np.stack([fold_of(texts, config.folds, seed) for seed in config.seeds])
    scores = np.stack([out_of_fold(features, targets, fold, **settings) for fold in folds])
    mean, low, high = auc_interval(scores, positive, folds, config.bootstrap_samples)
    # A parabola in the log of the length: "neither too short nor too long" is within its reach.
    length = np.log([[len(text)] for text in texts]).astype(np.float32)
    length = np.concatenate([length, length**2], axis=1)
    short = np.stack([out_of_fold(length, targets, fold, **settings | {"l2": 1e-6}) for fold in folds])
    length_mean, length_low, length_high = auc_interval(short, positive, folds, config.bootstrap_samples)
    rng = np.random.default_rng(0)
    permuted = []
    for _ in range(config.permutations):
        order = rng.permutation(len(texts))
        permuted.append(auc(out_of_fold(features, targets[order], folds[0], **settings), positive[order], folds[0]))
    threshold = 0.0 if config.loss == "logistic" else config.positive_from
    measured = {
        "labels": config.labels, "documents": len(texts), "good": int(positive.sum()),
        "features": config.model or f"hashed words, 2^{config.bits}", "loss": config.loss, "l2": config.l2,
        "folds": config.folds, "seeds": list(config.seeds),
        "auc": mean, "auc_low": low, "auc_high": high,
        "auc_by_seed": [auc(s, positive, f) for s, f in zip(scores, folds, strict=True)],
        "f1": float(np.mean([f1(s >= threshold, positive) for s in scores])),
        "f1_all_good": f1(np.ones(len(texts), bool), positive),
        "length_auc": length_mean, "length_auc_low": length_low, "length_auc_high": length_high,
        "permuted_auc": float(np.mean(permuted)) if permuted else None,
        "permuted_lowest": min(permuted, default=None), "permuted_highest": max(permuted, default=None),
        "device": jax.devices()[0].device_kind}
    return measured, scores


def f1(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the good texts."""
    return float(2 * (predicted & positive).sum() / (predicted.sum() + positive.sum()))


def cost(classifier: QualityClassifier, texts: list[str], passes: int) -> dict[str, float]:
    """CPU time of scoring from text, summed over threads, after one pass that compiles and fills the word cache."""
    classifier(texts)
    seconds = []
    for _ in range(passes):
        started = time.process_time()
        classifier(texts)
        seconds.append(time.process_time() - started)
    size = sum(map(len, texts))
    return {"cpu_microseconds_per_document": statistics.median(seconds) / len(texts) * 1e6,
            "million_characters_per_cpu_second": size / 1e6 / statistics.median(seconds),
            "characters_per_document": size / len(texts)}


def roc(label: str, scores: np.ndarray, positive: np.ndarray) -> tuple[str, list[float], list[float]]:
    """Shares of bad and of good texts that each threshold keeps."""
    good = positive[np.argsort(-scores, kind="stable")]
    return (label, [0.0, *(np.cumsum(~good) / (~good).sum()).tolist()],
            [0.0, *(np.cumsum(good) / good.sum()).tolist()])


def markdown(measured: dict[str, Any]) -> str:
    """The report as a table."""
    rows = [("AUC, held out", f"{measured['auc']:.3f} [{measured['auc_low']:.3f}, {measured['auc_high']:.3f}]"),
            ("AUC of each seed", ", ".join(f"{value:.3f}" for value in measured["auc_by_seed"])),
            ("F1, held out; of calling every text good", f"{measured['f1']:.3f}; {measured['f1_all_good']:.3f}"),
            ("AUC of length alone", f"{measured['length_auc']:.3f} [{measured['length_auc_low']:.3f}, "
                                    f"{measured['length_auc_high']:.3f}]")]
    if measured["permuted_auc"] is not None:
        rows.append(("AUC with permuted labels, mean and range",
                     f"{measured['permuted_auc']:.3f} [{measured['permuted_lowest']:.3f}, "
                     f"{measured['permuted_highest']:.3f}]"))
    rows += [("CPU microseconds per document", f"{measured['cpu_microseconds_per_document']:,.0f}"),
             ("million characters per CPU second", f"{measured['million_characters_per_cpu_second']:.2f}")]
    return (f"{measured['documents']:,} documents of `{measured['labels']}`, {measured['good']:,} of them good, "
            f"{measured['characters_per_document']:,.0f} characters on average. {measured['features']}, "
            f"{measured['loss']}, l2 {measured['l2']:g}; {measured['folds']} folds, seeds {measured['seeds']}; 95% "
            f"interval by bootstrap over documents; {measured['device']}.\n\n| | |\n|---|---|\n"
            + "".join(f"| {name} | {value} |\n" for name, value in rows))


if __name__ == "__main__":
    launch.run(main, default_config="configs/quality_classifier.py")
