"""Claims: verdicts are what the intervals say, whichever way the claim points and however many seeds there are."""

import json
import math

import pytest
from ml_collections import ConfigDict
from scipy.stats import ttest_rel

from experiments.claims import Claim, of_shares, of_values, rows
from experiments.findings import Findings, Table, save


@pytest.mark.parametrize(("measured", "controlled", "less", "verdict"), [
    ([0.9, 0.91, 0.89], [0.1, 0.12, 0.11], False, "holds"), ([0.9, 0.91, 0.89], [0.1, 0.12, 0.11], True, "refuted"),
    ([0.1, 0.9, 0.5], [0.4, 0.2, 0.6], False, "not settled"), ([0.9], [0.1], False, "not settled")])
def test_a_claim_over_pairs_is_settled_as_by_a_paired_t_test(measured, controlled, less, verdict):
    claim = of_values("it helps", "with", measured, "without", controlled, less=less)
    assert claim.verdict == verdict
    if len(measured) > 1:
        end = ttest_rel(measured, controlled).confidence_interval()
        expected = (-end.high, -end.low) if less else (end.low, end.high)
        assert claim.lead[1:] == pytest.approx(expected)


def test_one_seed_is_judged_over_its_questions_and_several_over_seeds():
    one = of_shares("tools help", "with", [(90, 100)], "without", [(20, 80)])
    assert one.verdict == "holds" and one.over == "100 and 80 questions" and one.lead[0] == pytest.approx(0.65)
    assert one.measured[1] < 0.9 < one.measured[2]
    assert of_shares("tools help", "with", [(20, 80)], "without", [(90, 100)]).verdict == "refuted"
    assert of_shares("fewer errors", "with", [(20, 80)], "without", [(90, 100)], less=True).verdict == "holds"
    three = of_shares("tools help", "with", [(9, 10), (90, 100), (85, 100)], "without", [(2, 10), (1, 100), (3, 100)])
    assert three.over == "3 seeds" and three.verdict == "holds" and three.measured[0] == pytest.approx(0.8833, abs=1e-4)
    with pytest.raises(ValueError, match="1 and 2 seeds"):
        of_shares("?", "a", [(1, 2)], "b", [(1, 2), (1, 2)])


def test_a_claim_survives_json_and_stands_in_a_table():
    claim = of_values("lower", "a", [0.5], "b", [0.7], less=True, of="seed")
    again = Claim.from_json(claim.as_json())
    assert again == claim and math.isinf(again.lead[1]) and claim.as_json()["lead"] == [pytest.approx(0.2), None, None]
    header, row = rows([claim])
    assert header[-1] == "verdict" and row == ["lower", "a: 0.500", "b: 0.700", "0.200, over 1 seed", "not settled"]


def test_what_was_found_lies_in_files_that_others_read(tmp_path):
    claim = of_values("lower", "a", [0.5, 0.4], "b", [0.7, 0.8], less=True)
    found = Findings("Something", [Table("Numbers", [["a"], ["1"]])], [("A picture", "<figure><svg>x</svg></figure>"),
                                                                      ("Words", "<p>none</p>")], {"a": 1}, [claim])
    text = save(found, tmp_path, ConfigDict({"seed": 0}), 1.0)
    assert text.index("## Claims") < text.index("## Numbers") and "| lower | a: 0.450" in text
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}
    assert [Claim.from_json(one) for one in json.loads((tmp_path / "claims.json").read_text())] == [claim]
    assert json.loads((tmp_path / "pictures" / "index.json").read_text()) == ["a_picture.svg"]
    assert (tmp_path / "pictures" / "a_picture.svg").read_text() == "<svg>x</svg>\n"
