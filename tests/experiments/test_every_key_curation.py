"""Every key of curation reaches what is asked of the library, told by stand-ins of its functions."""

import dataclasses
import json
import os

import pytest
from flip_keys import Flips, changed, leaves

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from configs import curate_fineweb, curate_speed  # noqa: E402
from experiments import curate, curation_report  # noqa: E402
from experiments import curate_speed as speed  # noqa: E402
from jaxllm.data import sources, tokenize_corpus, tokenizer  # noqa: E402
from jaxllm.data.curate import funnel, run, steps  # noqa: E402


def asked(facts, name, answer=None):
    """A stand-in that tells the plain values that it is given."""
    def tell(*given, **settings):
        facts.add(name, [str(one) for one in given if isinstance(one, (str, int, float, os.PathLike))], settings)
        return answer
    return tell


@pytest.fixture(scope="module")
def curation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curation")
    done = folder / "done"
    (done / "train").mkdir(parents=True)
    (done / "train" / "index.json").write_text(json.dumps({"tokens": 1, "documents": 1}))
    (done / "funnel.json").touch()
    config = changed(curate_fineweb.get_config(), {
        "input.world": "0:tiny", "input.world_pages": 20, "input.world_files": 2, "where.workers": 1})
    of_crawl = {"input.world": "", "input.folder": "crawl"}
    on_slurm = {"where.on": "slurm", "where.slurm.time": "1:00:00", "where.slurm.partition": "short"}
    strings = ("recipe.name", "recipe.url.extra_domains", "recipe.language.model", "where.slurm.time",
               "where.slurm.partition", "where.slurm.qos", "where.slurm.env_command", "tokens.tokenizer", "cache",
               "input.paths_file", "input.pattern", "input.folder")
    values = {**dict.fromkeys(strings, "another"), "recipe.words": "blingfire", "recipe.extract.extractor": "none",
              "recipe.language.languages": ("de",), "recipe.minhash.hash": "xxhash", "recipe.minhash.precision": 32,
              "where.on": "ray", "input.world": "1:tiny"}
    among = {**dict.fromkeys(("input.folder", "input.paths_file", "input.pattern"), of_crawl),
             **{key: on_slurm for key in leaves(config) if key.startswith("where.slurm.")}}

    def told(config, facts):
        given = config.input
        place = folder / f"{given.world}-{given.world_pages}-{given.world_files}"  # in which a web is written once

        def curated(settings, inputs, workdir, where, **how):
            web = [os.path.getsize(file) for file in sorted(place.glob("web-*/*.warc.gz"))]
            records = json.dumps([dataclasses.asdict(record) for record in (settings, inputs, where)])
            facts.add("curate", records.replace(str(place), ""), how, web)
            return done
        learned = type("Learned", (), {"save": staticmethod(lambda place: None)})
        stages = funnel.Funnel((funnel.Stage("read", 1, 1, None, 1, {}, 1.0, {}),), 1, 1)
        with pytest.MonkeyPatch.context() as patch:
            for module, name, stand_in in (
                    (run, "curate", curated), (funnel, "read", lambda folder, settings: stages),
                    (curation_report, "write", lambda *given: facts.add("documents shown", given[3])),
                    (sources, "open_source", lambda place: []),
                    (tokenizer, "train_tokenizer", asked(facts, "tokenizer", learned)),
                    (tokenize_corpus, "tokenize_corpus", asked(facts, "tokenise", (done / "train", None))),
                    (curate, "point_to", lambda folder, link: None)):
                patch.setattr(module, name, stand_in)
            curate.main(config, str(place))
    return Flips(config, told, values, among)


@pytest.mark.parametrize("key", leaves(curate_fineweb.get_config()))
def test_every_key_of_curation(key, curation):
    curation.check(key)


@pytest.fixture(scope="module")
def curation_speed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    (folder / "pages").mkdir()
    (folder / "pages" / "a.html").write_text("<html><body><p>A page.</p></body></html>")
    config = changed(curate_speed.get_config(), {"world_pages": 3, "cache": "cache"})

    def told(config, facts):
        with pytest.MonkeyPatch.context() as patch:
            for module, name, stand_in in (
                    (steps, "language_model", lambda path: None), (steps, "prepare_lists", asked(facts, "lists", "")),
                    (speed, "measure", asked(facts, "measure", {"seconds": 1.0})), (speed, "agreement", lambda out: ""),
                    (speed, "table", lambda rows, doubled, pages, size: facts.add("pages", pages, size) or "")):
                patch.setattr(module, name, stand_in)
            speed.main(config, str(folder / "run"))
    return Flips(config, told, {"cache": "another", "folder": str(folder / "pages")}, {})


@pytest.mark.parametrize("key", leaves(curate_speed.get_config()))
def test_every_key_of_the_speed_of_curation(key, curation_speed):
    curation_speed.check(key)
