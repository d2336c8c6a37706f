"""The small road: stages in order, each made once and handed what the last one made; its report tells them all."""

import json
import pathlib
import sys
import types

import pytest

import experiments
from configs import speedrun as configs
from experiments import lab, speedrun

TABLE = "# T\n\n## A\n\n| who | before | after |\n|---|---|---|\n| unknown | 0.98 | 0.1 |\n\nnote\n\n| other |\n"


@pytest.fixture
def config():
    config = configs.get_config("tiny")
    config.tokenizer.vocab_size = 400
    return config


@pytest.fixture
def road(monkeypatch, tmp_path):
    """The experiments that train, replaced by ones that write what is read of them and keep their config."""
    calls = []

    def trains(name, stopped=()):
        def main(config, workdir):
            calls.append((name, config, pathlib.Path(workdir)))
            folder = pathlib.Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.jsonl").write_text(json.dumps(
                {"step": 1, "validation_loss": 1.5, "validation_bits_per_byte": 0.5}) + "\n")
            (folder / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": "Who?", "text": "Ada."}) + "\n")
            (folder / "report.md").write_text(TABLE)
            return len(calls) not in stopped
        return main

    monkeypatch.setattr(lab, "base_model", lambda config, seed: calls.append(("pretrain", config, seed)) or trains(
        "base")(config, tmp_path / "base") and tmp_path / "base")
    for module in (speedrun.sft, speedrun.interrogate, speedrun.look_up, speedrun.reward_model,
                   speedrun.policy_gradient, speedrun.sft_to_rl):
        monkeypatch.setattr(module, "main", trains(module.__name__.rpartition(".")[2]))
    # In place of a module that needs an extra.
    monkeypatch.setitem(sys.modules, "experiments.self_play", types.SimpleNamespace(main=trains("self_play")))
    monkeypatch.setattr(experiments, "self_play", sys.modules["experiments.self_play"], raising=False)
    monkeypatch.setattr(speedrun.importlib.util, "find_spec", lambda name: name)
    return calls


def test_every_stage_gets_what_the_last_one_made_and_is_made_once(config, road, tmp_path, capsys):
    speedrun.main(config, str(tmp_path / "run"))
    tokenizer = str(tmp_path / "run" / "tokenizer" / "tokenizer")
    by_name = {name: (settings, where) for name, settings, where in road}
    assert by_name["pretrain"][0].data.tokenizer.name == tokenizer and by_name["pretrain"][1] == 0
    assert by_name["sft"][0].model == str(tmp_path / "base")
    assert by_name["sft"][0].data.sources == ("world:0:tiny",)
    for name in ("interrogate", "look_up"):
        assert by_name[name][0].base.data.tokenizer.name == tokenizer and by_name[name][0].seeds == (0,)
        assert by_name[name][1] == tmp_path / "run" / name
    for name in ("reward_model", "policy_gradient", "sft_to_rl", "self_play"):
        assert by_name[name][0].seeds == (0,) and by_name[name][1] == tmp_path / "run" / name
    said = capsys.readouterr().out
    for text in ("documents: ", "validation loss, nats a token: 1.5000", "Who?: Ada.", "unknown: 0.98 · 0.1"):
        assert text in said, text
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f"<h2>{name}, " in page for name in configs.STAGES)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == list(configs.STAGES)

    made = len(road)
    speedrun.main(config, str(tmp_path / "run"))
    assert len(road) == made and json.loads((tmp_path / "run" / "results.json").read_text()) == results
    config.look_up.steps += 1  # and what depends on a key that changed is made again, alone
    speedrun.main(config, str(tmp_path / "run"))
    assert {name for name, *_ in road[made:]} <= {"look_up"} and len(road) > made


def test_a_stage_that_was_asked_to_stop_is_not_done(config, road, tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun.sft, "main", lambda settings, workdir: False)
    with pytest.raises(SystemExit):
        speedrun.main(config, str(tmp_path / "run"))
    assert not list((tmp_path / "run" / "done").glob("sft-*")) and list((tmp_path / "run" / "done").glob("pretrain-*"))


def test_bad_input(config, tmp_path):
    for stages, message in ((("world", "moon"), "names moon; choose from world"),
                            (("sft", "world"), "must stand in the order world")):
        config.stages = stages
        with pytest.raises(ValueError, match=message):
            speedrun.main(config, str(tmp_path))
    config.stages, config.size = configs.STAGES, "huge"
    with pytest.raises(ValueError, match="config.size is 'huge'"):
        speedrun.main(config, str(tmp_path))
