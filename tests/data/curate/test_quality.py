"""The quality classifier: features, head, AUC and folder, each against something that is not ours."""

import json
import math
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random_weights

from jaxllm.data.curate import quality
from jaxllm.data.curate.quality import QualityClassifier, auc, auc_interval, fold_of, load_classifier, read_labelled
from jaxllm.data.curate.quality_features import HashedWords, PooledStates, SparseRows, product
from jaxllm.data.curate.quality_head import fit_head, mean_pool, out_of_fold
from jaxllm.data.tokenizer import train_tokenizer
from jaxllm.model.config import preset
from jaxllm.model.transformer import hidden_states

ROOT = pathlib.Path(__file__).parents[3]


def crc32(data: bytes) -> int:
    """CRC-32 bit by bit, by its polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def dense(features: SparseRows) -> np.ndarray:
    matrix = np.zeros((len(features), features.dim))
    matrix[features.rows, features.columns] = features.values
    return matrix


def test_hashed_words_are_their_formula():
    text = "The naïve cat; the_cat the\tCAT!"
    words = ["the", "naïve", "cat", "the_cat", "the", "cat"]
    pair, spread, modulus = 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15, 2**64
    numbers = [crc32(word.encode()) for word in words]
    numbers += [(a * pair + b) % modulus for a, b in zip(numbers, numbers[1:], strict=False)]
    counts = np.zeros(2**12)
    for number in numbers:
        counts[number * spread % modulus >> 52] += 1
    features = HashedWords(bits=12)(["", text, "... !"])
    assert np.diff(features.starts).tolist() == [0, np.count_nonzero(counts), 0]
    np.testing.assert_allclose(dense(features)[1], counts / np.linalg.norm(counts), rtol=1e-6)
    assert np.count_nonzero(counts) == 9  # "the cat" is no pair of the text, "the" and "cat" stand twice


def test_what_lies_beyond_the_limit_is_not_seen():
    short, long = HashedWords(12, 7)(["one two", "one two three"]), HashedWords(12)(["one two three"])
    assert np.array_equal(dense(short)[0], dense(short)[1]) and not np.array_equal(dense(short)[:1], dense(long))


@pytest.mark.parametrize("bits, characters", [(0, 1), (32, 1), (4, 0)])
def test_features_out_of_range(bits, characters):
    with pytest.raises(ValueError, match="choose bits from 1 to 31"):
        HashedWords(bits, characters)


def test_features_do_not_depend_on_the_process():
    code = ("from jaxllm.data.curate.quality_features import HashedWords\n"
            "f = HashedWords()(['Ein süßes Kätzchen sat on the mat, the mat.'])\n"
            "print(f.columns.tolist(), f.values.tolist())")
    seen = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed},
                           capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    here = HashedWords()(["Ein süßes Kätzchen sat on the mat, the mat."])
    assert seen == {f"{here.columns.tolist()} {here.values.tolist()}\n"}


def test_scoring_does_not_load_jax():
    code = "import sys, jaxllm.data.curate.quality; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 2)), max_size=30))
def test_auc_is_its_definition(rows):
    scores, positive, groups = (np.array([row[i] for row in rows], t) for i, t in enumerate((float, bool, int)))
    pairs = [(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
             for i in range(len(rows)) for j in range(len(rows))
             if positive[i] and not positive[j] and groups[i] == groups[j]]
    measured = auc(scores, positive, groups)
    assert measured == pytest.approx(np.mean(pairs)) if pairs else math.isnan(measured)


def test_auc_is_scipys_mann_whitney():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200) / 3, rng.random(200) < 0.3
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()))


def test_interval_holds_the_truth_about_as_often_as_it_says():
    """Scores N(d, 1) against N(0, 1) have AUC Phi(d / sqrt 2)."""
    rng, inside = np.random.default_rng(0), 0
    truth = 0.5 * (1 + math.erf(1.0 / math.sqrt(2) / math.sqrt(2)))
    for seed in range(40):
        positive = np.arange(120) < 60
        scores = rng.normal(size=120) + positive
        mean, low, high = auc_interval(scores[None], positive, np.zeros((1, 120), int), samples=120, seed=seed)
        assert low < mean < high
        inside += low <= truth <= high
    assert inside >= 33  # 38 expected of 40; fewer than 33 has probability 1e-3 where it is 95%


def test_folds_keep_equal_texts_together_and_depend_on_the_seed():
    texts = [f"text {i % 300}" for i in range(600)]
    folds = fold_of(texts, 5, seed=1)
    assert np.array_equal(folds[:300], folds[300:]) and min(np.bincount(folds)) > 80
    assert not np.array_equal(folds, fold_of(texts, 5, seed=2))


def as_sparse(matrix: np.ndarray) -> SparseRows:
    rows, columns = np.nonzero(matrix)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return SparseRows(columns.astype(np.int32), matrix[rows, columns].astype(np.float32), starts, matrix.shape[1])


def test_ridge_head_is_the_normal_equations():
    rng = np.random.default_rng(0)
    matrix = np.where(rng.random((60, 12)) < 0.4, rng.random((60, 12)), 0).astype(np.float32)
    targets, mask = rng.random(60) * 5, rng.random(60) < 0.7
    x, y = np.c_[matrix, np.ones(60)][mask], targets[mask]
    pull = np.diag([0.01] * 12 + [0.0])
    expected = np.linalg.solve(x.T @ x / mask.sum() + pull, x.T @ y / mask.sum())
    head = fit_head(as_sparse(matrix), targets, mask, l2=0.01, tolerance=1e-7)
    np.testing.assert_allclose(np.r_[head.weights, head.bias], expected, atol=2e-3)
    assert head.gradient_norm < 1e-4
    scaled = (matrix - matrix[mask].mean(0)) / matrix[mask].std(0)
    x = np.c_[scaled, np.ones(60)][mask]
    expected = np.c_[scaled, np.ones(60)] @ np.linalg.solve(x.T @ x / mask.sum() + pull, x.T @ y / mask.sum())
    head = fit_head(matrix, targets, mask, l2=0.01, tolerance=1e-7)
    np.testing.assert_allclose(product(matrix, head.weights) + head.bias, expected, atol=2e-3)


def test_logistic_head_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(80, 5)).astype(np.float32)
    targets = (matrix[:, 0] + rng.normal(size=80) > 0).astype(float)
    head = fit_head(as_sparse(matrix), targets, loss="logistic", l2=0.05, tolerance=1e-7)
    residual = 1 / (1 + np.exp(-(matrix @ head.weights + head.bias))) - targets
    assert abs(residual.mean()) < 1e-4
    np.testing.assert_allclose(matrix.T @ residual / 80 + 0.05 * head.weights, 0, atol=1e-4)
    classifier = QualityClassifier(HashedWords(4), np.arange(16) - 8, 0.5, "logistic")
    z = product(classifier.features(["a b c"]), classifier.weights) + 0.5
    assert classifier(["a b c"]) == pytest.approx(1 / (1 + np.exp(-z)))


@pytest.mark.parametrize("settings_, message", [
    ({"loss": "hinge"}, "choose a loss of ridge, logistic"), ({"l2": -1.0}, "l2 of"),
    ({"max_steps": 0}, "max_steps of"),
    ({"mask": np.zeros(3, bool)}, "no document to learn from"), ({"loss": "logistic"}, "learns from 0 and 1")])
def test_head_refuses(settings_, message):
    with pytest.raises(ValueError, match=message):
        fit_head(np.eye(3, dtype=np.float32), np.array([0.0, 1.0, 2.0]), **settings_)


def toy(rng: np.random.Generator, count: int) -> tuple[list[str], np.ndarray]:
    """Texts of common words; good ones hold a few of ten words that bad ones lack."""
    common, telling = [f"word{i}" for i in range(200)], [f"telling{i}" for i in range(10)]
    good = rng.random(count) < 0.5
    texts = [" ".join([*rng.choice(common, 40), *(rng.choice(telling, 4) if g else rng.choice(common, 4))])
             for g in good]
    return texts, good


def test_separable_toy_is_learnt_and_permuted_labels_are_not():
    rng = np.random.default_rng(0)
    texts, good = toy(rng, 240)
    features, folds = HashedWords()(texts), fold_of(texts, 4, seed=0)
    fit = {"loss": "logistic", "l2": 1e-3}
    assert auc(out_of_fold(features, good, folds, **fit), good, folds) > 0.97
    permuted = []
    for _ in range(5):
        order = rng.permutation(240)
        permuted.append(auc(out_of_fold(features, good[order], folds, **fit), good[order], folds))
    assert abs(np.mean(permuted) - 0.5) < 0.06  # the mean of five has a standard deviation of about 0.017


def test_folder_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    texts, _ = toy(rng, 60)
    features = HashedWords(bits=14, max_characters=5000)
    classifier = QualityClassifier(features, rng.normal(size=2**14).astype(np.float32), 0.3)
    classifier.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    assert loaded.features == features and loaded.loss == "ridge"
    np.testing.assert_array_equal(loaded(texts), classifier(texts))
    np.testing.assert_array_equal(loaded(texts[:1]), classifier(texts)[:1])
    assert loaded([]).shape == (0,) and loaded([""]) == pytest.approx(0.3)
    record = json.loads((tmp_path / "classifier" / "folder.json").read_text())
    record["features"]["bits"] = 15
    (tmp_path / "classifier" / "folder.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="do not fit"):
        load_classifier(tmp_path / "classifier")
    with pytest.raises(ValueError, match="choose one of ridge, logistic"):
        QualityClassifier(features, classifier.weights, 0.0, "hinge")


def test_pooled_states_of_a_model(tmp_path):
    config = preset("nano", vocab_size=272)
    params = jax.device_put(random_weights(config))
    tokenizer = train_tokenizer(["some words of a text, some more"], vocab_size=270)
    widths = set()

    @jax.jit
    def pool(tokens, counts):
        widths.add(tokens.shape)  # while tracing only
        return mean_pool(hidden_states(params, config, tokens), counts)
    texts = ["a", "some words of a text " * 2, "", "more of it, and again more of it, and on", "words"]
    pooled = PooledStates(pool, tokenizer, "nano", max_tokens=24, batch_size=2)(texts)
    states = jax.jit(hidden_states, static_argnums=1)
    for i in (1, 3, 4):  # one at a time, without padding
        ids = ([tokenizer.end_of_text] + tokenizer.encode(texts[i]))[:24]
        alone = states(params, config, jnp.array([ids], jnp.int32))
        np.testing.assert_allclose(pooled[i], np.asarray(alone)[0].mean(0), atol=2e-5)
    assert widths == {(2, 16), (2, 24)}
    classifier = QualityClassifier(PooledStates(pool, tokenizer, "nano", 24, 2), np.ones(pooled.shape[1]), 0.25)
    classifier.save(tmp_path / "c")
    with pytest.raises(ValueError, match="hidden states of the model 'nano': pass open_model"):
        load_classifier(tmp_path / "c")
    opened = []
    loaded = load_classifier(tmp_path / "c", lambda name: opened.append(name) or (pool, tokenizer))
    np.testing.assert_array_equal(loaded(texts), classifier(texts))
    assert opened == ["nano"]


def test_labels_are_read_and_bad_ones_named(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "a", "label": "1"}\n\n{"text": "b", "label": 2.5}\n{"text": "c", "label": true}\n')
    assert read_labelled(path) == [quality.Labelled("a", 1.0), quality.Labelled("b", 2.5), quality.Labelled("c", 1.0)]
    for line, message in (('{"text": "d"}', "expected an object with a text in 'text' and a label in 'label'"),
                          ('{"text": 3, "label": 1}', "expected an object"), ("[1]", "found list"),
                          ('{"text": "d", "label": "good"}', "'good' is not a finite number"),
                          ('{"text": "d", "label": NaN}', "not a finite number"), ("{", "not valid JSON")):
        path.write_text('{"text": "a", "label": 1}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"labels\.jsonl, line 2: .*" + message):
            read_labelled(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no labelled documents"):
        read_labelled(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_labelled(tmp_path / "nowhere")


def test_datatrove_steps(tmp_path):
    data = pytest.importorskip("datatrove.data", reason="needs the extra `curate`")
    from jaxllm.data.curate.quality_steps import QualityScore, QualityThreshold

    rng = np.random.default_rng(2)
    texts, _ = toy(rng, 40)
    classifier = QualityClassifier(HashedWords(bits=14), rng.normal(size=2**14).astype(np.float32), 0.5)
    classifier.save(tmp_path / "classifier")
    pages = [data.Document(text, str(i), metadata={"url": "u"}) for i, text in enumerate(texts)]
    score = pickle.loads(pickle.dumps(QualityScore(tmp_path / "classifier", batch_size=16)))
    scored = list(score.run(pages))
    assert [page.id for page in scored] == [str(i) for i in range(40)]
    assert [page.metadata["quality_score"] for page in scored] == pytest.approx(classifier(texts).tolist())
    threshold = QualityThreshold(0.5)
    kept = [int(page.id) for page in threshold.run(scored)]
    assert kept == np.flatnonzero(classifier(texts) >= 0.5).tolist() and 0 < len(kept) < 40
    assert threshold.stats["dropped_low_quality"].total == 40 - len(kept)
    with pytest.raises(ValueError, match="put QualityScore before"):
        list(threshold.run([data.Document("x", "unscored")]))


def test_human_labels_are_better_than_chance(real_data):
    documents = read_labelled(real_data("quality/dclm_majority_218.jsonl.xz"))
    assert len(documents) == 218
    texts, good = [d.text for d in documents], np.array([d.label > 0.5 for d in documents])
    folds = fold_of(texts, 3, seed=0)
    scores = out_of_fold(HashedWords(bits=16)(texts), good, folds, loss="logistic")
    assert 0.55 < auc(scores, good, folds) < 0.95
