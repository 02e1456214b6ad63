"""What `${eval:…}` of a configuration comes to: arithmetic with numbers, and nothing else."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from ppt_kit.errors import UserError

# a name of its own: an `eval` of Python's that somebody registers in this process is not met here
RESOLVER = "ppt_kit_arithmetic"
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
SIGNS: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
# characters of an expression; of a power
LONGEST, LARGEST_POWER = 200, 64


def arithmetic(text: Any) -> int | float:
    """The number that `text` comes to: numbers, + - * / // % ** and brackets.

    Raises:
        UserError: there is a name, a call, a text or anything else in it, or it has no value.
    """
    said = str(text)
    if len(said) > LONGEST:
        raise UserError(f"${{eval:{said[:80]}…}}: has {len(said)} characters. Write the number itself.")
    try:
        value = _value(ast.parse(said.strip(), mode="eval").body, said)
        finite = math.isfinite(value)
    except (SyntaxError, ValueError, RecursionError, ArithmeticError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        why = "division by zero" if isinstance(error, ZeroDivisionError) else "it is not arithmetic"
        raise UserError(f"${{eval:{said[:80]}}}: {why}. Write the number itself.") from None
    if not finite:
        raise UserError(f"${{eval:{said[:80]}}}: comes to {value}. Write the number itself.")
    return value


def with_own_resolver(values: Any) -> Any:
    """A configuration's plain values, `${eval:…}` in their texts replaced by a resolver that does `arithmetic`."""
    from omegaconf import OmegaConf

    if not OmegaConf.has_resolver(RESOLVER):
        OmegaConf.register_new_resolver(RESOLVER, arithmetic)
    return _replaced(values)


def _replaced(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _replaced(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_replaced(value) for value in values]
    return re.sub(r"\$\{eval:", f"${{{RESOLVER}:", values) if isinstance(values, str) else values


def _value(node: ast.expr, said: str) -> int | float:
    # of bool, which is a kind of int, too
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](_value(node.operand, said))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left, said), _value(node.right, said)
        if isinstance(node.op, ast.Pow) and (abs(right) > LARGEST_POWER or abs(left) > 10**6):
            raise UserError(f"${{eval:{said[:80]}}}: a power that large is no size of anything. Write the number.")
        value = OPERATORS[type(node.op)](left, right)
        if not isinstance(value, complex):
            return value
    what = ast.unparse(node)[:40]
    raise UserError(
        f"${{eval:{said[:80]}}}: {what} is not arithmetic. Numbers, + - * / // % ** and brackets are read, "
        "names and calls never. Write the number itself."
    )
