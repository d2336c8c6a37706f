"""Every key of the models that learning from taste and practice starts from matters, and every key of DPO's study."""

import json

import numpy as np
import pytest
from flip_keys import Flips, TracedJax, changed, digest, leaves
from flip_lab import NANO, OTHER_PEOPLE, RANKINGS, SHAPE, START, learn, noted_main, numbers_of, patched_lab, under

from configs import direct_preference as direct_config
from configs import practice as practice_config
from configs import taste as taste_config
from experiments import direct_preference, practice, taste

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def jokes(tmp_path_factory):
    config = changed(taste_config.get_config(), {
        "seeds": (0,), "things": 3, "samples": 2, "rankings": 6, "completions": 3, "people": 2, "cache": "cache",
        "start.talks": 20, "start.vocab_size": 300, "start.max_tokens": 8, "start.row_length": 192,
        **under("start.shape", NANO)})
    values = {"seeds": (1,), "cache": "another", "start.model": "a published model", "start.talks": 40,
              "start.row_length": 160, **under("human", OTHER_PEOPLE),
              **under("start.shape", SHAPE)}
    among = {"start.shape.max_positions": {"start.shape.positions": "learned"}}
    return Flips(config, noted_main(taste.main, tmp_path_factory.mktemp("jokes")), values, among)


@pytest.mark.parametrize("key", leaves(taste_config.get_config()))
def test_every_key_of_the_start_of_taste(key, jokes):
    jokes.check(key)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    config = changed(practice_config.get_config(), {
        "seeds": (0,), "samples": 2, "cache": "cache", "start.train": 6, "start.validation": 3, "start.test": 3,
        "start.documents": (40, 40, 30), "start.demonstrations": 20, "start.vocab_size": 300, "start.max_tokens": 8,
        **under("start.shape", NANO)})
    values = {"seeds": (1,), "cache": "another", "part": "test", "start.family": "no such", "start.kinds": ("2 steps",),
              "start.document_kinds": ("2 steps", "1 step", "3 steps"), "start.documents": (40, 30, 30),
              "start.row_length": 80, **under("start.shape", SHAPE)}
    among = {"start.test": {"part": "test"}, "start.shape.max_positions": {"start.shape.positions": "learned"}}

    def practised(config, facts):  # what others take of a start
        facts.add("to practise on", list(practice.tasks(config.start, 0, "train")))
    return Flips(config, noted_main(practice.main, tmp_path_factory.mktemp("problems"), practised), values, among)


@pytest.mark.parametrize("key", leaves(practice_config.get_config()))
def test_every_key_of_the_start_of_practice(key, problems):
    problems.check(key)


DIRECT = [key for key in leaves(direct_config.get_config()) if not key.startswith("start.")]


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    folder = tmp_path_factory.mktemp("direct")
    records = [{"prompt": list(one.prompt), "completions": one.completions, "ranking": one.ranking} for one in RANKINGS]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = changed(direct_config.get_config(), {
        "seeds": (0,), "arms": ("dpo",), "steps": 4, "batch_size": 4, "row_length": 200,
        "judged": 2, "judged_samples": 2, "max_tokens": 100, "data.rankings": 6, "data.held_out_rankings": 4,
        "data.completions": 3, "cache": "cache"})
    values = {"seeds": (1,), "arms": ("dpo_shuffled",), "data.sources": (str(folder / "a.jsonl"),),
              "part": "validation", "cache": "another", "batch_size": 8, "microbatches": 2, "logit_chunks": 2,
              "row_length": 120, **under("data.human", OTHER_PEOPLE)}
    among = {"data.held_out": {"data.sources": (str(folder / "a.jsonl"),)},
             **{f"learning_rate.{loss}": {"arms": (loss,)} for loss in config.learning_rate}}

    def run(flipped, facts):
        def begin(settings, seed, cache):
            facts.add("start", seed, cache)
            return START

        def reply_logp(params, model, asked, replies, execution):
            facts.add("logp", digest(str(asked), str(replies)))
            return np.array([-numbers_of(*row).random() for row in zip(asked, replies, strict=True)])
        traced = TracedJax(facts, step=learn(facts))
        with pytest.MonkeyPatch.context() as patch:
            patched_lab(patch, facts, folder)
            patch.setattr(taste, "start", begin)
            patch.setattr(direct_preference, "_compiled", direct_preference._compiled.__wrapped__)
            patch.setattr(direct_preference, "jax", traced)
            patch.setattr(direct_preference, "reply_logp", reply_logp)
            direct_preference.main(flipped, str(folder / "run"))
        traced.trace_rest()
    return Flips(config, run, values, among)


@pytest.mark.parametrize("key", DIRECT)
def test_every_key_of_direct_preference(key, direct):
    direct.check(key)
