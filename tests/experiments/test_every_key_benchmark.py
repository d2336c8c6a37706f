"""Every key of the benchmarks matters: what is measured, how often, against whom, told by stand-ins of the workers."""

import contextlib
import json
import re
import sys
from types import SimpleNamespace

import pytest
from flip_keys import Flips, changed, digest, leaves
from flip_lab import START

from configs import benchmark as speed_config
from configs import benchmark_evaluate as evaluate_config
from configs import benchmark_policy as policy_config
from configs import benchmark_sft as sft_config
from experiments import (
    benchmark,
    benchmark_contest,
    benchmark_decode,
    benchmark_engine,
    benchmark_evaluate,
    benchmark_policy,
    benchmark_sft,
    lab,
)

ANSWERS = {
    "limit": {"platform": "gpu", "device": "a GPU", "flops": {"float32": 1e12}}, "bandwidth": {"bytes_per_second": 1e9},
    "measure": dict.fromkeys(("tokens_per_second", "first_median", "first_95", "between_median", "between_95"), 1.0),
    "gap": {"gaps": [{"tokens": 1, "way": "float32", "mean": 0.0, "largest": 0.0}]}, "train": {}}
LOADED = {"corpus_tokens": 1, "read_as": "pread", "mtok_per_second": 1.0, "mtok_per_processor_second": 1.0,
          "resident_mb": 1.0, "resident_grew_mb": 1.0}


def noted_worker(facts):
    """A class of processes that measure: what each is asked, and a second for every step."""
    class Worker:
        about = {"attention": "xla", "weight_bytes": 1.0}

        def __init__(self, function, spec, environment):
            facts.add("worker", function, spec, sorted(environment))

        def run(self, count):
            facts.add("run", count)
            return float(count)

        def close(self):
            facts.add("close")

        @staticmethod
        def answer_of(function, spec, environment=None):
            facts.add("asked", function, spec, len(environment or ()))
            return ANSWERS[function.partition(":")[2]]
    return Worker


@contextlib.contextmanager
def stand_ins(facts, **more):
    """In the place of all that starts a process or looks at the machine; `more` is module -> names."""
    worker, ready = noted_worker(facts), lambda *_: True
    installed = SimpleNamespace(util=SimpleNamespace(find_spec=ready))
    alike = {"Worker": worker, "physical_cores": lambda: 2, "has_trl": ready, "write": lambda *_: None,
             "findings": lambda *_: None, "importlib": installed, "has_peers": ready,
             "describe": lambda limit: {"lines": []}}
    with pytest.MonkeyPatch.context() as patch:
        for module in (benchmark, benchmark_contest, benchmark_decode, benchmark_engine, benchmark_policy,
                       benchmark_sft, benchmark_evaluate):
            for name, stand_in in {**alike, **more}.items():
                if hasattr(module, name):
                    patch.setattr(module, name, stand_in)
        yield patch


@pytest.fixture(scope="module")
def speed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    keys = leaves(speed_config.get_config())
    values = {**{key: "another" for key in keys if re.search(r"generate(_gpu)?\.weights\.|\.name$", key)},
              "startup.ours": "scan float32", "engine.model": "gpt2_124m", "engine.weights": "a folder",
              "engine.dtype": "bfloat16", "generate_gpu.llama_cpp": ("F16",), "loader.tokens": (1_000,),
              "generate.finalists": 1, "generate_gpu.finalists": 1,
              "train_gpu.peers": ("plain eager float32",), "generate.transformers": ("bfloat16",),
              "generate_gpu.transformers": ("float32",)}

    def run(config, facts):
        def measure(*asked):
            facts.add("loader", asked)
            return [LOADED]

        def write_text(path, text):
            facts.add("written", digest(re.sub(r"\d+\.\d+(e-\d+)?", "", text)))  # but for the seconds
        with stand_ins(facts, benchmark_loader=SimpleNamespace(measure=measure), write_text=write_text):
            benchmark.main(config, str(folder))
    return Flips(speed_config.get_config(), run, values, {})


@pytest.mark.parametrize("key", leaves(speed_config.get_config()))
def test_every_key_of_the_benchmark_of_speed(key, speed):
    speed.check(key)


def noted_models(facts):
    """In the place of training a tokenizer and of writing a model."""
    def train_tokenizer(texts, size, pattern, special):
        facts.add("tokenizer", size)
        return START.tokenizer
    return {"train_tokenizer": train_tokenizer, "write_model": lambda folder, model, tokenizer: facts.add(model)}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")

    def run(config, facts):
        with stand_ins(facts, **noted_models(facts)):
            benchmark_policy.main(config, str(folder))
    return Flips(policy_config.get_config(), run, {"heads": 8}, {})


@pytest.mark.parametrize("key", leaves(policy_config.get_config()))
def test_every_key_of_the_benchmark_of_policy_gradient(key, policy):
    policy.check(key)


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine_tuning")
    for name in "ab":
        talks = [{"messages": [{"role": "user", "content": f"{name}?" * n}, {"role": "assistant", "content": "!" * n}]}
                 for n in range(1, 9)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, talks)))
    config = changed(sft_config.get_config(), {
        "data.sources": (str(folder / "a.jsonl"),), "data.conversations": 4, "row_length": 64})

    def run(flipped, facts):
        with stand_ins(facts, **noted_models(facts)):
            benchmark_sft.main(flipped, str(folder))
        facts.add((folder / benchmark_sft.TALKS).read_text())
    return Flips(config, run, {"data.sources": (str(folder / "b.jsonl"),), "heads": 8}, {})


@pytest.mark.parametrize("key", leaves(sft_config.get_config()))
def test_every_key_of_the_benchmark_of_fine_tuning(key, fine_tuning):
    fine_tuning.check(key)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")

    def run(config, facts):
        def told(name, answer=None):
            def tell(*asked, **settings):
                facts.add(name, [one for one in asked if isinstance(one, (str, int))], settings)
                return answer
            return tell

        def theirs(model, names, place):
            facts.add("theirs", names)
            return dict.fromkeys(names), 1.0, 1.0
        harness = SimpleNamespace(
            installed=lambda: True, run=theirs,
            write_tasks=lambda tasks, place, seed: facts.add("written", seed) or [task.name for task in tasks])
        backend = SimpleNamespace(HFLM=told("backend"))
        with stand_ins(facts, evaluate_harness=harness, evaluate=told("ours"), asked_tokens=told("tokens", 1),
                       compared=told("compared"), findings_of=told("findings"), LanguageModel=told("model"),
                       load_model=told("load", (None, None, None)), convert=SimpleNamespace(
                           main=lambda settings, place: facts.add("converted", settings.source)),
                       open_task=lambda name, *asked, **how: facts.add(name, asked, how) or SimpleNamespace(
                           name=name, kind="choice")) as patch:
            patch.setattr(lab, "stage", lambda place, name, settings, make: make(place) or place)
            patch.setitem(sys.modules, "lm_eval.models.huggingface", backend)
            benchmark_evaluate.main(config, str(folder))
    return Flips(evaluate_config.get_config(), run, {"model": "another", "data": "another"}, {})


@pytest.mark.parametrize("key", leaves(evaluate_config.get_config()))
def test_every_key_of_the_benchmark_of_evaluation(key, evaluation):
    evaluation.check(key)
