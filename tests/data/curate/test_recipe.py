"""Recipes: FineWeb's values, both spelled out in the config file and as defaults; unknown settings are refused."""

import dataclasses

import pytest

from configs import curate_fast, curate_fineweb
from jaxllm.data.curate import recipe


def test_config_files_spell_out_the_recipes():
    assert recipe.from_mapping(curate_fineweb.get_config().recipe.to_dict()) == recipe.fineweb()
    assert recipe.from_mapping(curate_fast.get_config().recipe.to_dict()) == recipe.fast()


def test_values_of_the_published_pipeline():
    datatrove = pytest.importorskip("datatrove.pipeline.filters", reason="needs the extra `curate`")
    import inspect

    def default(owner, name):
        return inspect.signature(owner).parameters[name].default

    made = recipe.fineweb()
    assert made.gopher_repetition.top_n_grams == default(datatrove.GopherRepetitionFilter, "top_n_grams")
    assert made.gopher_repetition.duplicated_n_grams == default(datatrove.GopherRepetitionFilter, "dup_n_grams")
    assert made.gopher_quality.min_words == default(datatrove.GopherQualityFilter, "min_doc_words")
    assert made.gopher_quality.min_words_with_letters == default(datatrove.GopherQualityFilter,
                                                                 "max_non_alpha_words_ratio")
    assert made.fineweb.max_duplicate_line_characters == default(datatrove.FineWebQualityFilter,
                                                                 "char_duplicates_ratio")
    assert made.language.threshold == default(datatrove.LanguageFilter, "language_threshold")
    assert made.c4.min_sentences == default(datatrove.C4QualityFilter, "min_num_sentences")


def test_round_trip_and_fingerprint():
    made = recipe.fineweb()
    assert recipe.from_mapping(dataclasses.asdict(made)) == made
    prints = {made.fingerprint, recipe.fast().fingerprint, *(made.without(s).fingerprint for s in recipe.SWITCHABLE)}
    assert len(prints) == 2 + len(recipe.SWITCHABLE)
    assert made.fingerprint == recipe.fineweb().fingerprint


def test_bad_settings_are_refused():
    settings = dataclasses.asdict(recipe.fineweb())
    with pytest.raises(ValueError, match="language has no setting 'treshold'"):
        recipe.from_mapping(settings | {"language": settings["language"] | {"treshold": 0.5}})
    with pytest.raises(ValueError, match="lacks the setting 'c4'"):
        recipe.from_mapping({k: v for k, v in settings.items() if k != "c4"})
    with pytest.raises(ValueError, match="extract.extractor is 'lynx'"):
        recipe.Recipe("x", extract=recipe.Extract(extractor="lynx"))
    with pytest.raises(ValueError, match="languages is empty"):
        recipe.Recipe("x", language=recipe.Language(languages=()))
    with pytest.raises(ValueError, match="c4.min_sentences is -1"):
        recipe.Recipe("x", c4=recipe.C4(min_sentences=-1))
