"""The filter ladder on a small web: what it counts is what stands in the files; its numbers are by definition."""

import json

import numpy as np
import pytest

pytest.importorskip("datatrove", reason="needs the extra `curate`")

from configs import filter_ladder as configs  # noqa: E402
from experiments import filter_ladder  # noqa: E402
from experiments import filter_ladder_numbers as numbers  # noqa: E402
from experiments.filter_ladder_minhash import theory  # noqa: E402
from jaxllm.data.curate import hashed_list, recipe, steps  # noqa: E402
from jaxllm.evals import intervals  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture(scope="module")
def planted(tmp_path_factory, language_model):
    """The section on one web of 120 pages, with short block lists in place of the package's."""
    folder = tmp_path_factory.mktemp("ladder")
    lists = folder / "cache" / f"{steps.BLOCK_LISTS.name.partition('.')[0]}-{steps.BLOCK_LISTS.stat().st_size}"
    for name in ("domains", "urls"):
        hashed_list.write(["nobody.example.org"], lists / f"{name}.npy")
    config = configs.get_config()
    config.update_from_flattened_dict({
        "sections": ("planted",), "cache": str(folder / "cache"), "planted.seeds": (0,), "planted.world": "tiny",
        "planted.pages": 120, "planted.recipes": ("fast",), "planted.extraction_pages": 6, "bootstrap": 50,
        "workers": 1})  # in this process: others take seconds to start at every stage
    filter_ladder.main(config, str(folder / "runs"))
    return folder / "runs" / "planted"


@pytest.mark.slow
def test_planted_pages_fall_where_they_should(planted):
    text = (planted / "report.md").read_text()
    truth = [json.loads(line) for line in next(planted.glob("web-*/truth.jsonl")).read_text().splitlines()]
    assert len(truth) == 120 and (planted / "report.html").read_text().count("<svg") >= 2
    rows = {row[0]: row for row in ([cell.strip() for cell in line.strip("|").split("|")]
                                    for line in text.splitlines() if line.startswith("| "))}
    for stage in ("language", "gopher_repetition", "gopher_quality"):
        assert float(rows[stage][2].split()[0]) > 0.6, rows[stage]
        assert float(rows[stage][4].split()[0]) > 0.6, rows[stage]
    assert json.loads((planted / "results.json").read_text())


def test_numbers_against_their_definitions():
    draw = np.random.default_rng(0)
    values = draw.normal(3.0, 1.0, 400)
    mean, low, high = intervals.bootstrap(values, lambda rows: float(np.mean(rows)), 500)
    assert low < 3.0 < high and abs((high - low) / 2 - 1.96 / 20) < 0.02 and mean == pytest.approx(values.mean())
    mean, low, high = intervals.t_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)  # t(0.975, 2) / sqrt(3)
    counts = np.array([numbers.shingle_counts("a b c d e f", "a b c d e f"), numbers.shingle_counts("a b c d", "")])
    assert numbers.benchmark_scores(counts) == pytest.approx((1.0, 0.5, 2 / 3))


def test_theory_is_what_drawing_hashes_gives():
    draw, s, made = np.random.default_rng(1), 0.7, recipe.MinHash()
    agree = draw.random((20_000, made.buckets, made.hashes)) < s
    assert float(agree.all(2).any(1).mean()) == pytest.approx(float(theory(s, made)), abs=0.015)


def test_bad_input_before_any_work(tmp_path):
    for changes, message in (({"sections": ("all",)}, "config.sections names all"),
                             ({"planted.recipes": ("slow",)}, "config.planted.recipes names slow"),
                             ({"ablation.seeds": (0,)}, "an interval over seeds needs two")):
        config = configs.get_config()
        config.update_from_flattened_dict(changes)
        with pytest.raises(ValueError, match=message):
            filter_ladder.main(config, str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
