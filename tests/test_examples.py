"""The scripts of docs/for_other_projects.md run as they stand and do what they say."""

import pathlib
import re
import runpy

import jax
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture(autouse=True)
def outside_rules():
    """Other projects broadcast as JAX lets them."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name,least_gain", [("borrow_a_loss", 0.05), ("borrow_the_train_step", 0.3)])
def test_training_examples_lower_their_loss(name, least_gain, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    before, after = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert after < (1 - least_gain) * before


def test_sampler_example_writes_pairs_that_occur(capsys):
    names = runpy.run_path(str(EXAMPLES / "borrow_the_sampler.py"))
    written = capsys.readouterr().out.strip("\n")
    assert len(written) == 61
    assert all(pair in names["text"] for pair in map("".join, zip(written, written[1:], strict=False)))


def test_the_page_shows_every_script():
    page = (EXAMPLES.parent / "for_other_projects.md").read_text()
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(re.findall(r"\(examples/(\w+)\.py\)", page))
