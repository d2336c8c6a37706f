"""Is the working shown right? Every equation of a worked solution, computed anew."""

from __future__ import annotations

import re

from jaxllm.infer.tool_calculator import calculate
from jaxllm.infer.tools import ToolError
from jaxllm.rl.reward_extract import Grade
from jaxllm.rl.reward_numbers import plain, read_number

MAX_STEPS = 100
_MARK = re.compile(r"<<[^<>\n]*>>")
# Arithmetic up to an equals sign, and the number behind it: "12 x 4 = 48", "<<48/2=24>>".
_LEFT = re.compile(r"[-(]*\.?\d[\d\s.,+\-*/()x\u00f7%]*$")
_RIGHT = re.compile(r"\s*([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?!\s*[*/x+\u00f7^(]|\s*-\s*\d)")


def equations(text: str) -> list[tuple[str, str, bool]]:
    """(left side, right side, whether they are equal) of the equations between numbers in a text, MAX_STEPS at most.

    The right side may be rounded to the places it shows. GSM8K's marks <<a*b=c>> are equations like any other. What the
    calculator cannot read is no equation.

    >>> equations("He pays 3 x 4 = 12 coins, so 20 - 12 = 9 are left.")
    [('3 x 4', '12', True), ('20 - 12', '9', False)]
    """
    found = []
    for sentence in re.split(r"\n|[.;,](?=\s)", plain(text)):
        sides = re.split(r"=|>>|<<", sentence)
        for before, after in zip(sides, sides[1:], strict=False):
            left, right = _LEFT.search(before[-200:]), _RIGHT.match(after)
            if left and right and re.search(r"[\d)%]\s*[+*/x\u00f7-]\s*[-\d(.]", left[0]):
                equal = _equal(left[0], right[1])
                if equal is not None:
                    found.append((left[0].strip(), right[1], equal))
                if len(found) == MAX_STEPS:
                    return found
    return found


def _equal(left: str, right: str) -> bool | None:
    expression = re.sub(r"(?<=\d),(?=\d{3})", "", left).replace("x", "*").replace("%", "/100")
    places = len(right.partition(".")[2])
    value = right.replace(",", "")
    tolerance = f"<= {10**-places / 2:.{places + 1}f}" if places else "== 0"
    try:
        return calculate(f"abs({expression} - ({value})) {tolerance}").startswith("true")
    except ToolError:
        return None


def steps(completion: str, answer: str = "", *, least: int = 1) -> Grade:
    """1 where the reply shows at least `least` equations, all of them are right, and the last leads to the answer.

    Args:
      completion: the reply.
      answer: a number that the last equation's right side must equal; "" asks for none.
      least: equations; 1 or more.
    """
    if least < 1:
        raise ValueError(f"least is {least}; it must be 1 or more, or a reply without working would be right")
    shown = equations(_MARK.sub("", completion))
    wrong = [f"{left} = {right}" for left, right, equal in shown if not equal]
    if len(shown) < least or wrong:
        return Grade(0.0, None, f"wrong: {wrong[0]}" if wrong else f"{len(shown)} equations are shown, not {least}")
    last, truth = read_number(shown[-1][1]), read_number(answer) if answer else None
    if answer and (truth is None or last is None or last.value != truth.value):
        return Grade(0.0, shown[-1][1], "the last equation does not lead to the answer")
    return Grade(1.0, shown[-1][1], f"{len(shown)} equations, all right")
