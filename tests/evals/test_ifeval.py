"""IFEval's checks: published verdicts on one model's replies, and replies made to follow and not to."""

import collections
import json
import tarfile

import pytest

from jaxllm.evals import ifeval
from jaxllm.evals.ifeval import CHECKS, follows, grade, sentences
from jaxllm.evals.ifeval_language import language_of

# Instruction -> (arguments, a reply that follows, one that does not).
EXAMPLES = {
    "keywords:existence": ({"keywords": ["cat", "Mat"]}, "The CAT on the mat", "The cat"),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, "relation": "at least"}, "Cat, cat", "cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "concatenate", "The Cat."),
    "keywords:letter_frequency": ({"letter": "t", "let_frequency": 2, "let_relation": "less than"}, "Tap", "tat"),
    "language:response_language": ({"language": "de"}, "Die Katze ist auf der Matte.", "The cat is on the mat."),
    "length_constraints:number_sentences": ({"num_sentences": 3, "relation": "less than"}, "Dr. No left. So?",
                                            "A b. C! D"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "cats"}, "One.\n\n\"Cats, dogs", "Cats.\n\nOne"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] and [b c]", "[a] and b]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Yours.\nP. S. More", "Yours.\nPS More"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n- b", "* a\n** b"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, "a *b c* d", "a ** d"),
    "detectable_format:multiple_sections": ({"section_spliter": "Section", "num_sections": 2},
                                            "Section 1 a\nSection 2 b", "Section 1 a\nSection b"),
    "detectable_format:json_format": ({}, "```json\n{\"a\": 1}\n```", "{a: 1}"),
    "detectable_format:title": ({}, "<<Cats>>\non a mat", "<< >>"),
    "combination:two_responses": ({}, "one\n******\ntwo", "one\n******\none"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say hello."}, "say hello. Hello.", "Hello."),
    "startend:end_checker": ({"end_phrase": "That is all."}, "Yes. that is all.\n", "That is all. Yes."),
    "startend:quotation": ({}, "\"cat\"", "\"cat"),
    "change_case:capital_word_frequency": ({"capital_frequency": 2, "capital_relation": "less than"},
                                           "a WELL-KNOWN cat", "THE CAT"),
    "change_case:english_capital": ({}, "THE CAT IS ON THE MAT", "The cat is on the mat"),
    "change_case:english_lowercase": ({}, "the cat is on the mat", "die katze ist auf der matte"),
    "punctuation:no_comma": ({}, "one; two", "one, two"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_instruction_accepts_and_refuses(name):
    arguments, good, bad = EXAMPLES[name]
    assert follows("prompt", good, [name], [arguments]) == [True]
    assert follows("prompt", bad, [f"en:{name}"], [arguments | {"unused": None}]) == [False]
    assert follows("prompt", " \n", [name], [arguments]) == [False]


def test_loose_looks_at_the_reply_without_its_edges_and_marks():
    answer = json.dumps({"prompt": "p", "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
                         "kwargs": [{}, {}]})
    verdict = grade("Sure, here it is:\n*\"cat\"*", answer)
    assert verdict.strict == (False, False) and verdict.loose == (True, True) and verdict.score == 0.0
    assert grade("\"cat\"", answer).score == 1.0


def test_bad_instructions_are_refused():
    with pytest.raises(ValueError, match="unknown instruction 'be:nice'"):
        follows("p", "r", ["be:nice"], [{}])
    with pytest.raises(ValueError, match="cannot be checked with"):
        follows("p", "r", ["punctuation:no_comma"], [{"num": 3}])
    with pytest.raises(ValueError, match="'at least' and 'less than'"):
        follows("p", "r", ["length_constraints:number_words"], [{"num_words": 3, "relation": "around"}])


def test_sentences_end_where_they_end():
    assert sentences("Mr. A. B. Fox paid 3.50. \"Why?\" he said...\n\nTitle\n\nEnd!") == [
        "Mr. A. B. Fox paid 3.50.", "\"Why?\"", "he said...", "Title", "End!"]


def test_languages_by_script_and_words():
    for code, text in {"en": "it is on the mat", "fr": "le chat est sur le tapis", "ru": "он не на полу, и это хорошо",
                       "bg": "това е за да се знае", "hi": "यह और वह घर में है", "mr": "तो आणि मी घरी आहे",
                       "ja": "ねこはマットのうえ", "ur": "یہ گھر میں ہے", "fa": "این در خانه است", "": "123 !"}.items():
        assert language_of(text) == code


def test_published_verdicts(real_data):
    """A model's replies to 541 prompts: under one verdict in a hundred differs, by languages and sentences."""
    with tarfile.open(real_data("eval/ifeval_responses_with_verdicts.tar.xz")) as tar:
        def lines(name):
            return [json.loads(line) for line in tar.extractfile(name).read().decode().splitlines()]

        items = {item["prompt"]: json.dumps(item) for item in lines("en_input_data.jsonl")}
        differ, count = collections.Counter(), 0
        for form in ("strict", "loose"):
            for row in lines(f"gpt-4o-2024-08-06__{form}.jsonl"):
                ours = getattr(grade(row["response"], items[row["prompt"]]), form)
                for name, mine, theirs in zip(row["instruction_id_list"], ours, row["follow_instruction_list"],
                                              strict=True):
                    differ[name.partition(":")[2]] += mine != theirs
                    count += 1
    assert count == 1668 and sum(differ.values()) <= 13
    exact = [name for name in CHECKS if "language" not in name and "english" not in name
             and name not in ("length_constraints:number_sentences", "keywords:letter_frequency")]
    assert len(exact) == 20 and not any(differ[name] for name in exact)
    assert set(differ) == set(CHECKS) == set(ifeval.CHECKS)
