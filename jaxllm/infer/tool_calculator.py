"""A calculator: exact arithmetic over fractions, by a parser of its own, with every size bounded."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from jaxllm.infer.tools import Tool, ToolError

MAX_LENGTH = 500  # characters of an expression
MAX_DEPTH = 50  # brackets and signs within each other
MAX_BITS = 4096  # of a numerator or denominator, about 1200 digits
DIGITS = 12  # of a rounded number
MAX_EXPONENT_DIGITS = 4  # of 1e9999, which is refused for its bits; but 1e999999999 must not be made at all

_TOKEN = re.compile(r"\s*(?:((?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|([A-Za-z]+)|"
                    r"(\*\*|//|<=|>=|==|!=|\S))")
_SAME = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "·": "*"})
_COMPARE: Mapping[str, Callable] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
                                    "==": operator.eq, "=": operator.eq, "!=": operator.ne}
_BINARY: tuple[tuple[str, ...], ...] = (("+", "-"), ("*", "/", "//", "%"))


def calculate(expression: str) -> str:
    """The value of an expression, exact.

    + - * / // % ** with Python's binding, brackets, decimals, one comparison, and abs, ceil, floor, round, sqrt, gcd,
    lcm, min, max, factorial. A fraction that is no decimal is shown as a fraction and rounded to 12 digits; a root that
    is no fraction is rounded to 12 digits.

    Args:
      expression: at most MAX_LENGTH characters.

    Raises:
      ToolError: for what is no expression, has no value, or is too large; the sentence says which.

    >>> calculate("0.1 + 0.2"), calculate("1/3"), calculate("9.11 < 9.9"), calculate("2**-2 * (3 - 1)")
    ('0.3', '1/3 = 0.333333333333 (rounded)', 'true', '0.5')
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are read")
    parser = _Parser(expression.translate(_SAME))
    left = parser.level(0, 0)
    if (sign := parser.take(*_COMPARE)) is None:
        parser.expect_end()
        return _show(left, parser.rounded)
    right = parser.level(0, 0)
    parser.expect_end()
    answer = "true" if _COMPARE[sign](left, right) else "false"
    return f"{answer} (of rounded numbers)" if parser.rounded else answer


class _Parser:
    """Recursive descent over the tokens of an expression; evaluates as it reads."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        for number, name, sign in _TOKEN.findall(text.rstrip()):
            self.tokens.append(("number", number) if number else ("name", name.lower()) if name else ("sign", sign))
        self.place, self.rounded = 0, False

    def take(self, *signs: str) -> str | None:
        """The next token if it is one of these signs."""
        if self.place < len(self.tokens) and self.tokens[self.place] in [("sign", sign) for sign in signs]:
            self.place += 1
            return self.tokens[self.place - 1][1]
        return None

    def expect_end(self) -> None:
        if self.place < len(self.tokens):
            raise ToolError(f"there is {self.tokens[self.place][1][:20]!r} where an operator or the end should be")

    def level(self, binding: int, depth: int) -> Fraction:
        """A sum (binding 0), a product (1), or a signed power (2)."""
        if depth > MAX_DEPTH:
            raise ToolError(f"brackets and signs stand more than {MAX_DEPTH} deep")
        if binding == len(_BINARY):
            return self.signed(depth)
        value = self.level(binding + 1, depth)
        while sign := self.take(*_BINARY[binding]):
            value = _apply(sign, value, self.level(binding + 1, depth))
        return value

    def signed(self, depth: int) -> Fraction:
        if sign := self.take("+", "-"):
            value = self.level(len(_BINARY), depth + 1)
            return -value if sign == "-" else value
        base = self.atom(depth)
        return _power(base, self.level(len(_BINARY), depth + 1)) if self.take("**") else base

    def atom(self, depth: int) -> Fraction:
        if self.place == len(self.tokens):
            raise ToolError("the expression ends where a number should be")
        kind, text = self.tokens[self.place]
        if kind == "number":
            self.place += 1
            return _number(text)
        if kind == "name":
            return self.function(depth)
        if self.take("("):
            value = self.level(0, depth + 1)
            self.expect(")")
            return value
        raise ToolError(f"there is {text[:20]!r} where a number should be")

    def function(self, depth: int) -> Fraction:
        name = self.tokens[self.place][1]
        self.place += 1
        if name not in FUNCTIONS:
            raise ToolError(f"{name[:20]!r} is unknown; there are {', '.join(FUNCTIONS)}")
        self.expect("(")
        values = [self.level(0, depth + 1)]
        while self.take(","):
            values.append(self.level(0, depth + 1))
        self.expect(")")
        least, most, function = FUNCTIONS[name]
        if not least <= len(values) <= most:
            raise ToolError(f"{name} does not take {len(values)} numbers")
        result = Fraction(function(*values))
        self.rounded |= name == "sqrt" and result * result != values[0]
        return _bounded(result)

    def expect(self, sign: str) -> None:
        if self.take(sign) is None:
            raise ToolError(f"a {sign!r} is missing")


def _number(text: str) -> Fraction:
    text = text.replace("_", "")
    exponent = re.split("[eE]", text)[1:]
    if exponent and len(exponent[0].lstrip("+-")) > MAX_EXPONENT_DIGITS:
        raise _too_large()
    return _bounded(Fraction(text))


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign in ("/", "//", "%") and right == 0:
        raise ToolError("division by zero")
    function = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
                "//": operator.floordiv, "%": operator.mod}[sign]
    return _bounded(Fraction(function(left, right)))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("only whole exponents can be computed; for a square root there is sqrt")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    if abs(base) in (0, 1):
        return base ** int(exponent % 2 if exponent else 0) if base else Fraction(int(exponent == 0))
    if (_bits(base) - 1) * abs(exponent) > MAX_BITS:  # judged before the power is taken
        raise _too_large()
    return _bounded(base ** int(exponent))


def _sqrt(value: Fraction) -> Fraction:
    if value < 0:
        raise ToolError("a negative number has no real square root")
    exact = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if exact * exact == value:
        return exact
    places = 20 + len(str(value.denominator))
    return Fraction(math.isqrt(value.numerator * 10 ** (2 * places) // value.denominator), 10 ** places)


def _round(value: Fraction, digits: Fraction = Fraction(0)) -> Fraction:
    places = _whole(digits)
    if abs(places) > 100:
        raise _too_large()
    return Fraction(round(value, places))


def _factorial(value: Fraction) -> int:
    number = _whole(value)
    if not 0 <= number <= 500:
        raise ToolError("the factorial is taken of whole numbers from 0 to 500")
    return math.factorial(number)


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise ToolError("a whole number is needed here")
    return value.numerator


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _too_large()
    return value


def _too_large() -> ToolError:
    return ToolError(f"a number is too large: more than {MAX_BITS} bits")


# Name -> (fewest arguments, most, function).
FUNCTIONS: Mapping[str, tuple[int, int, Callable]] = {
    "abs": (1, 1, abs), "ceil": (1, 1, math.ceil), "floor": (1, 1, math.floor), "round": (1, 2, _round),
    "sqrt": (1, 1, _sqrt), "gcd": (1, 50, lambda *values: math.gcd(*map(_whole, values))),
    "lcm": (1, 50, lambda *values: math.lcm(*map(_whole, values))), "min": (1, 50, lambda *values: min(values)),
    "max": (1, 50, lambda *values: max(values)), "factorial": (1, 1, _factorial),
}


def _show(value: Fraction, rounded: bool) -> str:
    """A whole number, a decimal where it ends, else the fraction and a rounded decimal."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest == 1 and not rounded:
        return _decimal(value, max(twos, fives))
    top, bottom = abs(value.numerator), value.denominator
    places = max(DIGITS - len(str(top // bottom)), 0) if top >= bottom else DIGITS + len(str(bottom // max(top, 1))) - 1
    text = f"{_decimal(Fraction(round(value, places)), places)} (rounded)"
    return text if rounded else f"{value.numerator}/{value.denominator} = {text}"


def _decimal(value: Fraction, places: int) -> str:
    digits = str(abs(value.numerator) * 10 ** places // value.denominator).rjust(places + 1, "0")
    whole, part = digits[:len(digits) - places], digits[len(digits) - places:]
    return f"{'-' if value < 0 else ''}{whole}{'.' if part else ''}{part}"


def calculator_tool(name: str = "calculator",
                    description: str = "Computes an arithmetic expression exactly, such as (3 + 4) * 12.5.") -> Tool:
    """The tool `calculator(expression)`; see `calculate`."""
    expression = {"type": "string", "description": "the expression"}
    return Tool(name, description, {"type": "object", "properties": {"expression": expression},
                                    "required": ["expression"]}, calculate, 5000)
