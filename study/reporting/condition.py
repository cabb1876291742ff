"""`--where`: a condition on a run, of comparisons of its columns. It is read, never run: what is not listed here is refused."""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from helper.schema.values import near_match
from helper.untrusted.texts import one_line

Value = float | int | str | bool | None
Values = Callable[[str], Value]  # a run's value of a column; None where it has none

NUMBER, TEXT, SWITCH, NOTHING = "a number", "a text", "1 or 0", "None"  # kinds of values
TRUTH = "true or false"  # what a comparison is
COMPARISONS = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
MOST = 10_000  # characters
ALLOWED = "names of columns, numbers, texts in quotes, == != < <= > >=, in, not in, and, or, not, parentheses"


class Unclear(ValueError):
    """A condition that cannot be read; the message says why."""


@dataclass(frozen=True)
class Part:
    """A part of a condition: the kind of its values, and its value for a run."""

    kind: str
    of: Callable[[Values], Value]


@dataclass(frozen=True)
class Condition:
    """What a run has to fulfil. A comparison with a value that a run does not have is false; `== None` asks for that."""

    holds: Callable[[Values], bool]


def read_condition(text: str, kinds: Mapping[str, str]) -> Condition:
    """A condition such as `mode == "dynamic" and 0.5 < sparsity <= 0.9`.

    Args:
        kinds: {column: NUMBER, TEXT or SWITCH}.
    Raises:
        Unclear: an unknown column, values that cannot be compared, or anything else than comparisons.
    """
    if len(text) > MOST:
        raise Unclear(f"more than {MOST:,} characters")
    try:
        whole = truth(Reader(text.strip(), kinds).part(tree_of(text.strip())), text)
    except (RecursionError, MemoryError):
        raise Unclear("nested too deeply") from None
    return Condition(lambda values: bool(whole(values)))


def tree_of(text: str) -> ast.expr:
    """Raises Unclear: it is no expression of Python."""
    if "\0" in text:
        raise Unclear("it cannot be read: there is a byte that is no text")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of its own programs
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        at = (error.offset or 1) - 1
        hint = "; compare by ==" if text[at : at + 1] == "=" else ""
        raise Unclear(f"it cannot be read at character {at + 1}{hint}; there may be {ALLOWED}") from None


def truth(part: Part, source: str) -> Callable[[Values], Value]:
    """What tells whether a part holds. Raises Unclear: it is a number or a text."""
    if part.kind not in (TRUTH, SWITCH):
        raise Unclear(f"{one_line(source, 60)} is {part.kind} and has to be compared with something")
    return part.of


class Reader:
    """Makes a `Part` of every node of a condition's syntax tree that is allowed."""

    def __init__(self, text: str, kinds: Mapping[str, str]) -> None:
        self.text, self.kinds = text, kinds

    def part(self, node: ast.expr) -> Part:
        readers = {
            ast.BoolOp: self.joined, ast.UnaryOp: self.negated, ast.Compare: self.compared, ast.Name: self.column,
            ast.Constant: self.constant,
        }  # fmt: skip
        return readers.get(type(node), self.refuse)(node)

    def refuse(self, node: ast.expr) -> NoReturn:
        raise Unclear(f"{self.source(node)} may not stand there; there may be {ALLOWED}{self.dashed(node)}")

    def source(self, node: ast.expr) -> str:
        return one_line(ast.get_source_segment(self.text, node) or "it", 60)

    def dashed(self, node: ast.expr) -> str:
        return "; a text stands in quotes" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) else ""

    def joined(self, node: ast.BoolOp) -> Part:
        parts = [truth(self.part(each), self.source(each)) for each in node.values]
        every = all if isinstance(node.op, ast.And) else any
        return Part(TRUTH, lambda values: every(of(values) for of in parts))

    def negated(self, node: ast.UnaryOp) -> Part:
        if isinstance(node.op, ast.Not):
            of = truth(self.part(node.operand), self.source(node.operand))
            return Part(TRUTH, lambda values: not of(values))
        sign = {ast.USub: -1, ast.UAdd: 1}.get(type(node.op))
        if sign is None or not isinstance(node.operand, ast.Constant) or self.part(node.operand).kind != NUMBER:
            self.refuse(node)
        return constant(sign * node.operand.value, NUMBER)

    def column(self, node: ast.Name) -> Part:
        name = node.id
        if name not in self.kinds:
            raise Unclear(f"{one_line(name, 60)}: no such column{near_match(name, self.kinds)}; a text stands in quotes")
        return Part(self.kinds[name], lambda values: values(name))

    def constant(self, node: ast.Constant) -> Part:
        kinds = {bool: SWITCH, int: NUMBER, float: NUMBER, str: TEXT, type(None): NOTHING}
        kind = kinds.get(type(node.value))
        return constant(node.value, kind) if kind else self.refuse(node)

    def compared(self, node: ast.Compare) -> Part:
        sides = [node.left, *node.comparators]
        pairs = [self.pair(*each) for each in zip(sides, node.ops, sides[1:], strict=False)]
        return Part(TRUTH, lambda values: all(holds(values) for holds in pairs))

    def pair(self, left: ast.expr, how: ast.cmpop, right: ast.expr) -> Callable[[Values], bool]:
        if isinstance(how, ast.In | ast.NotIn):
            return self.within(left, right, wanted=isinstance(how, ast.In))
        first, second = self.part(left), self.part(right)
        if type(how) not in COMPARISONS:
            raise Unclear(f"`is` may not stand there: compare by == with {self.source(right)}")
        if NOTHING in (first.kind, second.kind) and isinstance(how, ast.Eq | ast.NotEq):
            return lambda values: (first.of(values) == second.of(values)) == isinstance(how, ast.Eq)
        self.check_alike(first, left, second, right)
        return comparing(COMPARISONS[type(how)], first.of, second.of)

    def within(self, left: ast.expr, right: ast.expr, *, wanted: bool) -> Callable[[Values], bool]:
        first = self.part(left)
        if not isinstance(right, ast.Tuple | ast.List | ast.Set):
            whole = self.part(right)
            if (first.kind, whole.kind) != (TEXT, TEXT):
                raise Unclear(
                    f'in {self.source(right)}: expected a text, or values in parentheses such as ("dense", "dynamic")'
                )
            return comparing(lambda a, b: (a in b) == wanted, first.of, whole.of)
        members = [self.part(each) for each in right.elts]
        for member, each in zip(members, right.elts, strict=True):
            self.check_alike(first, left, member, each)
        return comparing(lambda a, b: (a in b) == wanted, first.of, lambda values: [member.of(values) for member in members])

    def check_alike(self, first: Part, left: ast.expr, second: Part, right: ast.expr) -> None:
        """Raise Unclear unless two parts can be compared."""
        kinds = {NUMBER if part.kind == SWITCH else part.kind for part in (first, second)}
        if len(kinds) > 1 or kinds & {NOTHING, TRUTH}:
            raise Unclear(
                f"{self.source(left)} is {first.kind} and {self.source(right)} is {second.kind}: they cannot be compared so"
            )


def constant(value: Value, kind: str) -> Part:
    return Part(kind, lambda values: value)


def comparing(
    compare: Callable[[Value, Value], bool], first: Callable[[Values], Value], second: Callable[[Values], Value]
) -> Callable[[Values], bool]:
    """A comparison that is false where one of its sides has no value."""

    def holds(values: Values) -> bool:
        a, b = first(values), second(values)
        return a is not None and b is not None and bool(compare(a, b))

    return holds
