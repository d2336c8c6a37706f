r"""IFEval: instructions that a program can check, one function each, strict and loose.

    follows("Write in lowercase ...", "all of this is lowercase", ["change_case:english_lowercase"], [{}])  ->  [True]

The original leans on nltk's sentence model and on langdetect, which fetch data or draw at random; here sentences are
split by a rule and languages told by script and function words, so that a verdict needs nothing but its text.
docs/evaluate.md says how often that differs from published verdicts.

References: Zhou et al., Instruction-Following Evaluation for Large Language Models, 2023.
  https://arxiv.org/abs/2311.07911
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.evals.ifeval_language import language_of

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|vs|etc|e\.g|i\.e|[A-Z])\.$")
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\u0964]+[\"'\u201d\u2019)\]*]*\s+")
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*(?:```)?\Z", re.DOTALL | re.IGNORECASE)

Check = Callable[..., bool]  # (reply, prompt, **arguments of the instruction)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a reply followed.

    Attributes:
      strict: of each instruction, on the reply as it is.
      loose: the same where some form of the reply without asterisks, its first line or its last line follows.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]

    @property
    def score(self) -> float:
        """1 when all is followed strictly: the prompt-level strict accuracy is its mean."""
        return float(all(self.strict))


def _compared(count: int, threshold: int, relation: str) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"unknown relation {relation!r}; relations are 'at least' and 'less than'")
    return count >= threshold if relation == "at least" else count < threshold


def sentences(text: str) -> list[str]:
    """The sentences of a text, split behind a mark and a blank; not behind an abbreviation, an initial or a number of a
    list, and at empty lines.

    >>> sentences("Dr. Fenwick left. Who knows? 1. Pie. End")
    ['Dr. Fenwick left.', 'Who knows?', '1. Pie.', 'End']
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            part = paragraph[start:match.end()].strip()
            if _ABBREVIATION.search(part) or re.fullmatch(r"\W*\d+\.", part) or not re.search(r"\w", part):
                continue
            found.append(part)
            start = match.end()
        if rest := paragraph[start:].strip():
            found.append(rest)
    return found


def _paragraphs_at(pattern: str, text: str) -> list[str] | None:
    """The parts between dividers, an empty one at either end left out; None where one between is empty."""
    parts = re.split(pattern, text)
    inner = [part for i, part in enumerate(parts) if part.strip() or i not in (0, len(parts) - 1)]
    return inner if all(part.strip() for part in inner) else None


def _number_paragraphs(reply: str, prompt: str, *, num_paragraphs: int) -> bool:
    parts = _paragraphs_at(r"\s?\*\*\*\s?", reply)
    return parts is not None and len(parts) == num_paragraphs


def _two_responses(reply: str, prompt: str) -> bool:
    parts = _paragraphs_at(r"\*{6}", reply)
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _first_word(reply: str, prompt: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = reply.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    if filled != num_paragraphs or nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _highlighted(reply: str, prompt: str, *, num_highlights: int) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", reply) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", reply) if part[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def _bullets(reply: str, prompt: str, *, num_bullets: int) -> bool:
    lines = re.findall(r"^\s*(?:\*[^*].*|-.*)$", reply, re.MULTILINE)
    return len(lines) == num_bullets


def _sections(reply: str, prompt: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", reply)) >= num_sections


def _postscript(reply: str, prompt: str, *, postscript_marker: str) -> bool:
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(postscript_marker, re.escape(postscript_marker.lower())), reply.lower()) is not None


def _json(reply: str, prompt: str) -> bool:
    try:
        json.loads(_FENCE.sub(r"\1", reply.strip()))
    except (ValueError, RecursionError):
        return False
    return True


def _existence(reply: str, prompt: str, *, keywords: Sequence[str]) -> bool:
    return all(word.lower() in reply.lower() for word in keywords)


def _frequency(reply: str, prompt: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(reply.lower().count(keyword.lower()), frequency, relation)


def _forbidden(reply: str, prompt: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE) for word in forbidden_words)


def _letters(reply: str, prompt: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(reply.lower().count(letter.lower()), let_frequency, let_relation)


def _capitals(reply: str, prompt: str, *, capital_frequency: int, capital_relation: str) -> bool:
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", reply)
    return _compared(sum(word.isupper() for word in words), capital_frequency, capital_relation)


def _quoted(reply: str, prompt: str) -> bool:
    reply = reply.strip()
    return len(reply) > 1 and reply[0] == reply[-1] == '"'


def _ends(reply: str, prompt: str, *, end_phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _repeats(reply: str, prompt: str, *, prompt_to_repeat: str) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


CHECKS: Mapping[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": lambda reply, prompt, *, language: language_of(reply) == language,
    "length_constraints:number_sentences": lambda reply, prompt, *, num_sentences, relation: _compared(
        len(sentences(reply)), num_sentences, relation),
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": lambda reply, prompt, *, num_words, relation: _compared(
        len(re.findall(r"\w+", reply)), num_words, relation),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda reply, prompt, *, num_placeholders: len(
        re.findall(r"\[.*?\]", reply)) >= num_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda reply, prompt: any(one in reply for one in CONSTRAINED),
    "detectable_format:number_highlighted_sections": _highlighted,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda reply, prompt: any(
        title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", reply)),
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capitals,
    "change_case:english_capital": lambda reply, prompt: reply.isupper() and language_of(reply) == "en",
    "change_case:english_lowercase": lambda reply, prompt: reply.islower() and language_of(reply) == "en",
    "punctuation:no_comma": lambda reply, prompt: "," not in reply,
}


def follows(prompt: str, reply: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a reply follows each instruction; an empty reply follows none.

    Args:
      prompt: what was asked.
      reply: the model's.
      instructions: keys of CHECKS; one may have a language before it ("en:punctuation:no_comma").
      arguments: of each; those that are None were not given.

    Raises:
      ValueError: for an unknown instruction, or arguments that it does not take.
    """
    verdicts = []
    for name, given in zip(instructions, arguments, strict=True):
        check = CHECKS.get(name) or CHECKS.get(name.partition(":")[2])
        if check is None:
            raise ValueError(f"unknown instruction {name!r}; instructions are {', '.join(CHECKS)}")
        given = {key: value for key, value in given.items() if value is not None}
        try:
            verdicts.append(bool(reply.strip()) and bool(check(reply, prompt, **given)))
        except TypeError as error:
            raise ValueError(f"the instruction {name} cannot be checked with {dict(given)} ({error})") from error
    return verdicts


def grade(reply: str, answer: str) -> Verdict:
    """A reply's verdicts; `answer` is the item of IFEval as JSON: prompt, instruction_id_list and kwargs."""
    item = json.loads(answer)
    lines = reply.split("\n")
    forms = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    forms += [form.replace("*", "") for form in forms]
    strict = follows(item["prompt"], reply, item["instruction_id_list"], item["kwargs"])
    loose = [verdict or any(follows(item["prompt"], form, [name], [arguments])[0] for form in forms[1:])
             for verdict, name, arguments in zip(strict, item["instruction_id_list"], item["kwargs"], strict=True)]
    return Verdict(tuple(strict), tuple(loose))
