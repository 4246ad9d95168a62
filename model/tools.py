"""Tools that the assistant may call in the middle of an answer. A tool is a function from text to text.

`calculator` walks the expression's syntax tree and accepts numbers and arithmetic, nothing else: no names, no calls,
no `eval`. It is exact (fractions, not floats), bounded in size and time, and returns an error as a short sentence for
the model to read.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MAX_CHARS = 200  # of an expression
MAX_BITS = 1024  # of a numerator or denominator, intermediate results included
MAX_DIGITS = 12  # decimal places of a result that is not an integer
_KNOWN = "only numbers, + - * / // % ** and parentheses"
_ALLOWED = re.compile(r"[0-9.eE_+\-*/%()\s]+")
_BINARY: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
}
_UNARY: dict[type, Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculator(expression: str) -> str:
    """Evaluate + - * / // % ** (or ^) and parentheses over decimal numbers: '12+7' -> '19', '1/4' -> '0.25'.

    Never raises: what cannot be computed gives 'error: …', division by zero and too large results included.
    """
    text = expression.strip().translate({ord("×"): "*", ord("÷"): "/", ord("−"): "-", ord("^"): "**"})
    if len(text) > MAX_CHARS:
        return f"error: the expression is longer than {MAX_CHARS} characters"
    if not _ALLOWED.fullmatch(text):
        return f"error: {_KNOWN}"
    try:
        return _written(_value(ast.parse(text, mode="eval").body))
    except ZeroDivisionError:
        return "error: division by zero"
    except _NotComputable as error:
        return f"error: {error}"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: not an arithmetic expression"


class _NotComputable(Exception):
    """The message is the reason, as the model reads it after "error: "."""


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            # repr gives the decimal as written (0.1 stays 1/10); 1e999 is infinite and no fraction.
            result = Fraction(repr(number))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            result = _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            result = _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            result = _BINARY[type(op)](_value(left), _value(right))
        case _:
            raise _NotComputable(_KNOWN)
    return _bounded(result)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _NotComputable("the exponent is not a whole number")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())  # bits
    if abs(exponent.numerator) > MAX_BITS or size * abs(exponent.numerator) > 2 * MAX_BITS:
        raise _NotComputable("the result is too large")
    return base**exponent.numerator


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NotComputable("the result is too large")
    return value


def _written(value: Fraction) -> str:
    """Integers in full, others as a decimal rounded half to even, without trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(abs(value) * 10**MAX_DIGITS)
    whole, rest = divmod(scaled, 10**MAX_DIGITS)
    digits = f"{rest:0{MAX_DIGITS}d}".rstrip("0")
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
