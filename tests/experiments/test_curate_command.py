"""The curation commands: a made-up web comes out as documents, shards and a report; what is measured adds up."""

import json

import pytest

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from configs import curate_fast, curate_fineweb, curate_speed  # noqa: E402
from experiments import curate, curation_report  # noqa: E402
from experiments import curate_speed as speed  # noqa: E402
from jaxllm.data.curate import funnel  # noqa: E402
from jaxllm.data.shards import open_shards  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


def config(**changes):
    """One worker works in this process; others take seconds to start at every stage (see test_run.py)."""
    made = curate_fast.get_config()
    made.update_from_flattened_dict({
        "input.world": "0:tiny", "input.world_pages": 60, "input.world_files": 2, "tokens.vocab_size": 400,
        "where.workers": 1, "recipe.url.integrated_lists": False, "tokens.validation_fraction": 0.1, **changes})
    return made


@pytest.mark.slow
def test_from_the_made_up_web_to_shards(tmp_path, language_model, capsys, draw_no_more):
    curate.main(config(), str(tmp_path))
    run = (tmp_path / "latest").resolve()
    shown = capsys.readouterr().out
    rows = json.loads((run / "funnel.json").read_text())["stages"]
    assert rows[0]["documents"] == 60 and 20 < rows[-1]["documents"] < 60
    assert {row["name"]: row["dropped"] for row in rows}["url"] >= 1  # its hosts are known to be blocked
    tokens = open_shards(run / "tokens" / "train")
    assert f"{rows[-1]['documents']:,}" in shown and tokens.tokens > 1000
    page = (run / "report.html").read_text()
    assert page.count("<svg") >= 6 and "gopher_short_doc" in page
    assert "| minhash |" in (run / "report.md").read_text()
    draw_no_more()
    curate.main(config(), str(tmp_path))  # finds everything done
    assert (tmp_path / "latest").resolve() == run


def test_bad_input_is_one_sentence(tmp_path):
    for changes, message in (({"input.folder": "x"}, "name one of input.folder"), ({"input.world": ""}, "name one of"),
                             ({"input.world": "0:vast"}, "input.world is '0:vast'"),
                             ({"recipe.words": "nltk"}, "words is 'nltk'")):
        with pytest.raises(ValueError, match=message):
            curate.main(config(**changes), str(tmp_path))
    assert curate_fineweb.get_config("crawl").input.folder == "crawl"
    assert len(curate_fineweb.sweep()) == len(curate_fast.sweep()) == 9


def test_tables():
    stages = (funnel.Stage("read", 10, 100, None, 2, {"status": 2}, 1.0, {}),
              funnel.Stage("url", 8, 80, 20, 2, {"domain": 2}, 0.5, {"no_url": 1}))
    rows = curation_report.funnel_rows(funnel.Funnel(stages, 1000, 1))
    assert rows[2] == ["url", "8", "80.0%", "80", "20", "2", "domain 2", "0.5"]
    assert curation_report.markdown_table(rows).count("\n") == 3
    assert ("url: no_url", "1") in curation_report.notes(funnel.Funnel(stages, 1000, 1))


@pytest.mark.slow
def test_speed(tmp_path, language_model):
    made = curate_speed.get_config()
    made.world_pages = 30
    pages, size = speed.write_warcs(made, tmp_path / "warc")
    assert pages == 30 and size > 10_000
    from jaxllm.data.curate import hashed_list

    for name in ("domains", "urls"):
        hashed_list.write(["blocked.example.org"], tmp_path / "lists" / f"{name}.npy")
    row = speed.measure("fast", tmp_path, str(tmp_path / "lists"), "0")
    assert 5 < row["documents"] < 30 and row["seconds"] > 0 and row["memory_mb"] > 20
    shown = speed.table({side: [{**row, "seconds": s}] for side, s in zip(speed.SIDES, (8.0, 4.0, 1.0), strict=True)},
                        {"fineweb": [2.0], "fast": [1.0]}, pages, size)
    assert "| fineweb | 7.5 |" in shown and "8.00x" in shown
