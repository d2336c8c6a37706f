"""The road: stages that name each other are made once, in order, and side by side; its report says what numbers say."""

import collections
import dataclasses
import gzip
import itertools
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from configs import lab as lab_config
from configs import speedrun as configs
from experiments import lab, report, speedrun, speedrun_measure, speedrun_report, speedrun_stages
from experiments.claims import of_shares
from experiments.speedrun_report import CHAPTERS
from experiments.speedrun_road import ORDER, Road
from jaxllm.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jaxllm.data.world import documents, make_world
from jaxllm.model.config import preset
from jaxllm.model.params import init
from jaxllm.train.checkpoint import load_model, save_model


@pytest.fixture
def config():
    config = configs.get_config("tiny")
    config.processes = 1
    return config


@pytest.fixture
def fakes(monkeypatch):
    """All stages replaced by ones that keep their settings and write a claim, a picture and a line."""
    calls = []

    def stage(name):
        def make(road):
            calls.append((name, road.settings(name)))
            claim = of_shares(f"{name} works", "with", [(9, 10)], "without", [(1, 10)])
            picture = ("A picture", f"<figure><svg>{name}</svg></figure>")
            return speedrun_stages.told(road, name, [claim], [("what", f"{name} said")], [picture], "report.html")
        return make

    monkeypatch.setattr(speedrun, "STAGES", {name: stage(name) for name in ORDER})
    monkeypatch.setattr(speedrun, "EXTRAS", {})
    monkeypatch.setattr(speedrun_report, "_minutes", lambda told: "")  # a drawing after each of so many stages
    monkeypatch.setattr(lab, "base_model", lambda settings, seed: pathlib.Path(
        f"/models/base-{lab.key_of(settings.to_dict())}"))
    return calls


def test_stages_get_the_folders_that_their_settings_name(config, fakes, tmp_path, capsys):
    config.seed = 3
    speedrun.main(config, str(tmp_path))
    road, settings = Road(config, tmp_path), dict(fakes)
    assert [name for name, _ in fakes] == list(configs.STAGES) == list(ORDER)
    assert set(speedrun_stages.STAGES) == set(ORDER)
    assert settings["curate"].input.folder == str(road.path("crawl"))
    assert settings["tokenizer"].source == f"{road.path('curate')}/latest/documents"
    assert settings["pretrain"].data.tokenizer.name == f"{road.path('tokenizer')}/tokenizer"
    assert settings["pretrain"].seed == 3 and settings["sft"].model == str(road.output("pretrain"))
    assert settings["sft"].data.sources == ("world:3:tiny",) and settings["quantize"].model == str(road.path("sft"))
    for name in ("interrogate", "look_up"):  # the same base model, found in the cache
        assert settings[name].base.to_dict() == {**settings["pretrain"].to_dict(), "seed": settings[name].base.seed}
        assert settings[name].seeds == (3,)
    assert settings["interrogate"].world == "3:tiny" and settings["look_up"].size == "tiny"

    said, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for name in ORDER:
        assert f"holds: {name} works. with 0.900, without 0.100" in said and f"<svg>{name}</svg>" in page
        assert f"href=\"{road.path(name).name}/report.html\"" in page
    assert page.count("href=\"#c") == len(CHAPTERS) and set(ORDER) == set(
        itertools.chain(*(chapter.stages for chapter in CHAPTERS)))
    assert json.loads((tmp_path / "results.json").read_text()).keys() == set(ORDER)


def test_a_stage_is_made_once_and_again_when_something_below_it_changed(config, fakes, tmp_path):
    speedrun.main(config, str(tmp_path))
    made = len(fakes)
    speedrun.main(config, str(tmp_path))
    assert len(fakes) == made
    config.look_up.steps += 1
    speedrun.main(config, str(tmp_path))
    assert [name for name, _ in fakes[made:]] == ["look_up"]
    config.crawl.pages = 50
    speedrun.main(config, str(tmp_path))
    again = {name for name, _ in fakes[made + 1:]}
    assert again == set(ORDER) - {"sft_to_rl", "distill", "self_play", "reward_model", "policy_gradient",
                                 "reward_hacking"}


def test_a_failed_stage_stops_what_needs_it_and_nothing_else(config, fakes, tmp_path, monkeypatch, capsys):
    def fails(road):
        raise ValueError("config.sft is wrong")

    monkeypatch.setitem(speedrun.STAGES, "sft", fails)
    with pytest.raises(SystemExit, match="sft: ValueError: config.sft is wrong. Not run for want of it: quantize, "
                                         "export, arena"):
        speedrun.main(config, str(tmp_path))
    assert {name for name, _ in fakes} == set(ORDER) - {"sft", "quantize", "export", "arena"}
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.undo()


@pytest.mark.slow
def test_stages_run_in_processes_of_their_own(config, tmp_path):
    pytest.importorskip("warcio", reason="pip install -e '.[curate]'")
    config.processes, config.stages, config.crawl.pages = 2, ("crawl",), 20
    speedrun.main(config, str(tmp_path))
    assert "20 pages" in (tmp_path / "logs" / "crawl.txt").read_text()
    found = json.loads((tmp_path / "results.json").read_text())["crawl"]
    assert found["lines"][0] == ["pages", "20"] and found["seconds"] > 0
    assert "Minutes of each stage" in (tmp_path / "report.html").read_text()


def test_a_sample_may_hold_what_ends_a_line_for_unicode(tmp_path):
    sample = {"step": 1, "prompt": "a", "text": "b\x85c\u2028d"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample, ensure_ascii=False) + "\n", encoding="utf-8")
    assert report.read_samples(tmp_path) == [sample]


def test_bad_input(config, tmp_path):
    def refused(message, **changes):
        with config.unlocked():
            before = {key: config[key] for key in changes}
            config.update(changes)
        with pytest.raises(ValueError, match=message):
            speedrun.main(config, str(tmp_path))
        config.update(before)

    refused("names moon; choose from crawl", stages=("crawl", "moon"))
    refused("each once", stages=("crawl", "crawl"))
    refused("config.stages lacks crawl, which curate reads", stages=("curate",))
    refused("config.size is 'huge'", size="huge")
    refused("choose 1 or more", processes=0)
    real = configs.get_config("gpu")
    real.stages = ("curate", "tokenizer", "pretrain", "recall")
    with pytest.raises(ValueError, match="recall ask about the made-up world"):
        speedrun.check(real)
    real.stages = configs.REAL
    with pytest.raises(ValueError, match="config.curate.input.folder is empty"):
        speedrun.check(real)
    real.curate.input.folder = "crawl"
    with pytest.raises(ValueError, match="config.sft.data.sources is empty"):
        speedrun.check(real)


def test_the_road_at_real_size_is_whole(fakes, tmp_path):
    """Each stage of it reads what the one before wrote, and no made-up web is needed."""
    config = configs.get_config("gpu")
    config.curate.input.folder, config.sft.data.sources = "crawl", ("talks.jsonl",)
    config.sft_to_rl.tasks, config.quantize.text = "tasks.jsonl", "text.txt"
    speedrun.main(config, str(tmp_path))
    road, settings = Road(config, tmp_path), dict(fakes)
    assert [name for name, _ in fakes] == list(configs.REAL) and not road.of_world
    assert settings["pretrain"].data.sources == (f"{road.path('curate')}/latest/documents",)
    for read in (settings["sft_to_rl"].model, settings["quantize"].model, settings["export"].source):
        assert read == str(road.path("sft"))
    assert settings["evaluate"].models == (f"{road.output('pretrain')}/model",)


def test_an_extra_that_is_missing_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun.importlib.util, "find_spec", lambda name: None if name == "pgx" else name)
    with pytest.raises(ValueError, match=r"self_play cannot run: pip install -e '\.\[games\]'"):
        speedrun.main(config, str(tmp_path))


def test_counts_of_three_tokens_are_a_distribution_and_learn():
    training = np.array([0, 1, 2] * 20)
    (known,) = speedrun_measure.trigram_logp(training, [[0, 1, 2, 0, 1]], vocab=5)
    assert known / 4 == pytest.approx(math.log(0.7 + 0.2 + 0.09 / 3 + 0.01 / 5), abs=0.05)
    # Behind any context, seen or not, all next tokens together have probability 1.
    for context in ([0, 1], [2, 1], [4, 4], [1]):
        rows = [[*context, token] for token in range(5)]
        ways = np.exp(speedrun_measure.trigram_logp(training, rows, vocab=5))
        before = np.exp(speedrun_measure.trigram_logp(training, [context], vocab=5)) if len(context) > 1 else 1.0
        assert (ways / before).sum() == pytest.approx(1.0)


def test_pages_kept_are_counted_by_their_kind(tmp_path):
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps({"url": url, "kind": kind}) + "\n" for url, kind in (
        ("a", "article"), ("b", "article"), ("c", "spam"))))
    (tmp_path / "documents").mkdir()
    with gzip.open(tmp_path / "documents" / "0.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "x", "metadata": {"url": "a"}}) + "\n")
    kept, every = speedrun_measure.kept_pages(tmp_path, tmp_path)
    assert kept == collections.Counter(article=1) and every == collections.Counter(article=2, spam=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of random weights and its tokenizer, as a run folder."""
    folder = tmp_path_factory.mktemp("small")
    world = make_world(0, "tiny")
    tokenizer = train_tokenizer((one.text for one in documents(world)), 400, "gpt4", SPECIAL_TOKENS)
    model = preset("tiny", vocab_size=512, max_positions=160, **lab_config.shape(32, layers=1).to_dict())
    save_model(folder / "model", init(model, jax.random.key(0)), model, tokenizer)
    return folder


def test_the_roads_own_measures_on_a_model_that_knows_nothing(config, small, tmp_path, monkeypatch):
    """Recall, answers in the chat, and what is written for others and read back."""
    pytest.importorskip("gguf", reason="pip install -e '.[convert]'")
    road = Road(config, tmp_path)
    config.recall.questions = 8
    monkeypatch.setattr(Road, "output", lambda self, name: small)
    by_band, samples = speedrun_measure.recalled(small, config, config.recall)
    assert set(by_band) == {"often", "sometimes", "rare", "once", "never"} and len(samples) == 5
    assert all(hits <= of <= 8 for hits, of in by_band.values())
    chat = tmp_path / "chat"
    params, model, tokenizer = load_model(small)
    save_model(chat, params, model, dataclasses.replace(tokenizer, chat_template="im_sep"))
    assert speedrun_measure.right_in_chat(road, chat, 8) == (0, 0, 8)

    config.export.source = str(small)
    files = speedrun_measure.exported(road, tmp_path / "export")
    assert sorted(path.name for path in files.values()) == ["assistant.Q4_0.gguf", "assistant.Q8_0.gguf",
                                                            "hugging_face"]
    rng = np.random.default_rng(0)
    monkeypatch.setattr(speedrun_measure, "held_out", lambda settings, seed: (rng.integers(0, 400, (4, 20)).tolist(),
                                                                              None))
    claim = speedrun_measure.drift(road, files["Q8_0"], files["Q4_0"])
    assert 0 < claim.measured[0] < claim.controlled[0] and claim.over == "4 documents"
