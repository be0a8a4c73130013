"""Reading YAML without running code.

The safe loader of PyYAML, with two tags that published config files use: `!!python/tuple`, and a small calculator in
place of `eval`, with which files compute lists of numbers, e.g. three anchor sizes per octave:

    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1/3), x * 2**(2/3)] for x in [32, 64, 128]]"]

The text is parsed, never executed: literals, arithmetic, comparisons, lists and tuples, comprehensions over them, and a
few functions of numbers. Attributes are not allowed, nor names other than those that a comprehension binds. The number
of steps and the size of the result are bounded.
"""

import ast
import io
import logging
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import IO, Any

import yaml

__all__ = ["ExpressionError", "SafeConfigLoader", "UnsafeYamlError", "evaluate", "load_yaml"]

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------- calculator

_MAX_TEXT = 4000  # characters
_MAX_STEPS = 100_000  # evaluated syntax nodes, and items of the lists that they give
_MAX_ITEMS = 10_000  # of one sequence
_MAX_BITS = 1024  # of one integer

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _bounded_range(*bounds: int) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > _MAX_ITEMS:
        raise ExpressionError(f"a range of {len(numbers)} numbers is too long (at most {_MAX_ITEMS})")
    return list(numbers)


def _bounded_round(number: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > _MAX_BITS:
        raise ExpressionError(f"round to {digits} digits")
    return round(number, digits)


def _bounded_sum(items: Any, start: Any = 0) -> Any:
    if isinstance(start, list | tuple) and len(start) + sum(map(len, items)) > _MAX_ITEMS:
        raise ExpressionError(f"a sequence is too long (at most {_MAX_ITEMS} items)")
    return sum(items, start)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (abs, float, int, len, list, max, min, tuple)},
    "range": _bounded_range,
    "round": _bounded_round,
    "sum": _bounded_sum,
}


class ExpressionError(ValueError):
    """The text is not an expression that `evaluate` accepts."""


def evaluate(text: str) -> Any:
    """Compute the value of an arithmetic or list expression: a number, text, None, or a list or tuple of these.

    An `ExpressionError` says that the text is not valid, uses anything but numbers, text, lists, tuples, comprehensions
    and a few functions of numbers, or is too large.

    >>> evaluate("[[x, x * 2] for x in range(1, 3)]")
    [[1, 2], [2, 4]]
    """
    if not isinstance(text, str):
        raise ExpressionError(f"expected text, but got {type(text).__name__} {text!r}")
    if len(text) > _MAX_TEXT:
        raise ExpressionError(f"the expression is too long: {len(text)} characters (at most {_MAX_TEXT})")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _Evaluator().value(tree.body, {})
    except ExpressionError as e:
        raise ExpressionError(f"cannot evaluate {text!r}: {e}") from None
    except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as e:
        raise ExpressionError(f"cannot evaluate {text!r}: {type(e).__name__}: {e}") from None


class _Evaluator:
    """Walks a syntax tree; `names` holds the variables of the comprehensions around a node."""

    def __init__(self) -> None:
        self._steps = 0

    def value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        self._count(1)
        handler = getattr(self, f"_{type(node).__name__}", None)
        if handler is None:
            raise ExpressionError(f"{ast.unparse(node)!r} ({type(node).__name__}) is not allowed here")
        result = handler(node, names)
        self._count(_items_of(result))  # many long lists count as many steps
        return result

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise ExpressionError(f"it takes more than {_MAX_STEPS} steps")

    def _Constant(self, node: ast.Constant, _: Mapping[str, Any]) -> Any:
        if not isinstance(node.value, bool | int | float | str | None):
            raise ExpressionError(f"{node.value!r} is not a number or text")
        return _checked(node.value)

    def _Name(self, node: ast.Name, names: Mapping[str, Any]) -> Any:
        if node.id not in names:
            raise ExpressionError(f"the name {node.id!r} is not defined")
        return names[node.id]

    def _List(self, node: ast.List, names: Mapping[str, Any]) -> list[Any]:
        return [self.value(item, names) for item in node.elts]

    def _Tuple(self, node: ast.Tuple, names: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(self.value(item, names) for item in node.elts)

    def _UnaryOp(self, node: ast.UnaryOp, names: Mapping[str, Any]) -> Any:
        return _operator(node, node.op)(self.value(node.operand, names))

    def _BinOp(self, node: ast.BinOp, names: Mapping[str, Any]) -> Any:
        compute = _operator(node, node.op)
        left, right = self.value(node.left, names), self.value(node.right, names)
        _check_operands(node, left, right)
        return _checked(compute(left, right))

    def _Compare(self, node: ast.Compare, names: Mapping[str, Any]) -> bool:
        left = self.value(node.left, names)
        for op, other in zip(node.ops, node.comparators, strict=True):
            compare = _operator(node, op)
            right = self.value(other, names)
            if not compare(left, right):
                return False
            left = right
        return True

    def _BoolOp(self, node: ast.BoolOp, names: Mapping[str, Any]) -> Any:
        stop_at = isinstance(node.op, ast.Or)
        result = None
        for item in node.values:
            result = self.value(item, names)
            if bool(result) is stop_at:
                break
        return result

    def _IfExp(self, node: ast.IfExp, names: Mapping[str, Any]) -> Any:
        return self.value(node.body if self.value(node.test, names) else node.orelse, names)

    def _Call(self, node: ast.Call, names: Mapping[str, Any]) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in _FUNCTIONS:
            raise ExpressionError(f"the function {name!r} is not allowed (only {', '.join(_FUNCTIONS)})")
        if node.keywords:
            raise ExpressionError(f"{ast.unparse(node)!r}: named arguments are not allowed")
        return _checked(_FUNCTIONS[name](*[self.value(arg, names) for arg in node.args]))

    def _ListComp(self, node: ast.ListComp | ast.GeneratorExp, names: Mapping[str, Any]) -> list[Any]:
        result = []
        for bound in self._bindings(node.generators, names):
            result.append(self.value(node.elt, bound))
            _checked(result)
        return result

    _GeneratorExp = _ListComp

    def _bindings(self, generators: list[ast.comprehension], names: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the variables for every turn of nested `for ... in ... if ...` clauses."""
        if not generators:
            yield names
            return
        first, *rest = generators
        for item in self.value(first.iter, names):
            bound = {**names, **_bind(first.target, item)}
            if all(self.value(test, bound) for test in first.ifs):
                yield from self._bindings(rest, bound)


def _operator(node: ast.expr, op: ast.AST) -> Callable[..., Any]:
    if type(op) not in _OPERATORS:
        raise ExpressionError(f"{ast.unparse(node)!r}: this operator is not allowed")
    return _OPERATORS[type(op)]


def _items_of(value: Any) -> int:
    """Count the items of nested lists; a list that occurs several times counts each time."""
    if not isinstance(value, list | tuple):
        return 0
    inner = {id(item): item for item in value if isinstance(item, list | tuple)}
    if not inner:
        return len(value)
    sizes = {key: _items_of(item) for key, item in inner.items()}
    return len(value) + sum(sizes.get(id(item), 0) for item in value)


def _bind(target: ast.expr, item: Any) -> dict[str, Any]:
    if isinstance(target, ast.Name):
        return {target.id: item}
    if not isinstance(target, ast.Tuple | ast.List):
        raise ExpressionError(f"cannot assign to {ast.unparse(target)!r}")
    if len(target.elts) != len(item):
        raise ExpressionError(f"cannot take {item!r} apart into {ast.unparse(target)!r}")
    return {name: v for part, x in zip(target.elts, item, strict=True) for name, v in _bind(part, x).items()}


def _check_operands(node: ast.BinOp, left: Any, right: Any) -> None:
    """Refuse operations that format text, or take too much time or memory, before they are computed."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        is_integer_power = isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int)
        if is_integer_power and int(left).bit_length() * max(int(right), 0) > _MAX_BITS:
            raise ExpressionError(f"{ast.unparse(node)!r} is too large")
        return
    if isinstance(node.op, ast.Add) and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return
    if isinstance(node.op, ast.Mult):
        for items, times in ((left, right), (right, left)):
            if isinstance(items, list | tuple) and isinstance(times, int):
                if len(items) * times > _MAX_ITEMS:
                    raise ExpressionError(f"{ast.unparse(node)!r} is too long (at most {_MAX_ITEMS} items)")
                return
    raise ExpressionError(f"{ast.unparse(node)!r}: expected numbers, or lists to join or repeat")


def _checked(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ExpressionError("a number is too large")
    if isinstance(value, list | tuple | str) and len(value) > _MAX_ITEMS:
        raise ExpressionError(f"a sequence is too long (at most {_MAX_ITEMS} items)")
    if isinstance(value, complex):
        raise ExpressionError("the result is not a real number")
    return value


# ------------------------------------------------------------------------------------------------------------ YAML

_PYTHON = "tag:yaml.org,2002:python/"
_FastSafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_MAX_ALIASED = 20_000  # values of a document whose aliases multiply them


class UnsafeYamlError(yaml.constructor.ConstructorError, ValueError):
    """The file has a tag that would run code."""


class SafeConfigLoader(_FastSafeLoader):
    """Builds only plain values: numbers, text, lists, tuples and dictionaries."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Build a dictionary, and log keys that occur twice; the last one counts."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    mark = key_node.start_mark
                    logger.warning("%s, line %d: %r is given twice.", mark.name, mark.line + 1, key_node.value)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Build a value; one that PyYAML stumbles over is an error with its line."""
        try:
            return super().construct_object(node, deep=deep)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as e:
            if isinstance(e, yaml.YAMLError):
                raise
            shown = node.value[:60] if isinstance(node, yaml.ScalarNode) else f"a {node.id}"
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown!r} is not a value of the type {kind!r} ({e})", node.start_mark
            ) from None


def _refuse_endless(root: yaml.Node) -> None:
    """Refuse aliases that contain themselves, or that repeat each other until nothing can hold the result."""
    sizes: dict[yaml.Node, int | None] = {}
    written = 1  # values and aliases in the text

    def size(node: yaml.Node) -> int:
        if node in sizes:
            known = sizes[node]
            if known is None:
                raise _refuse(node, "the value contains itself")
            return known
        sizes[node] = None
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.ScalarNode):
            parts = []
        nonlocal written
        written += len(parts)
        total = 1 + sum(map(size, parts))
        sizes[node] = total
        return total

    total = size(root)
    if total > _MAX_ALIASED and total > 10 * written:
        raise _refuse(root, f"its aliases (*name) make {total:,} values of {written} (at most {_MAX_ALIASED:,})")


def _refuse(node: yaml.Node, why: str) -> UnsafeYamlError:
    return UnsafeYamlError(None, None, why, node.start_mark)


def _construct_eval(loader: SafeConfigLoader, node: yaml.Node) -> Any:
    # [text]: the positional arguments of the call; locals and keywords are refused.
    arguments = loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None
    if arguments is None or len(arguments) != 1:
        raise _refuse(node, "expected !!python/object/apply:eval with one expression in a list")
    try:
        return evaluate(arguments[0])
    except ExpressionError as e:
        raise _refuse(node, str(e)) from None


def _construct_tuple(loader: SafeConfigLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_refused(loader: SafeConfigLoader, suffix: str, node: yaml.Node) -> Any:
    text = yaml.serialize(node).strip()
    shown = text if len(text) <= 200 else text[:200] + " ..."
    raise _refuse(
        node,
        f"the tag !!python/{suffix} would run code and is not supported: {shown}\n"
        "Only !!python/tuple and !!python/object/apply:eval with a list expression are. Write the value instead.",
    )


SafeConfigLoader.add_constructor(f"{_PYTHON}object/apply:eval", _construct_eval)
SafeConfigLoader.add_constructor(f"{_PYTHON}tuple", _construct_tuple)
SafeConfigLoader.add_multi_constructor(_PYTHON, _construct_refused)


class _NamedText(io.StringIO):
    """Text with a name for error messages and logs."""

    name = ""


def load_yaml(stream: str | IO[Any], source: str = "the text", loader: Callable[[Any], Any] = SafeConfigLoader) -> Any:
    """Read one YAML document, as text or an open file; None if it is empty. Messages name the `source`.

    An `UnsafeYamlError` says that it contains a tag that would run code, or an expression that is not supported, and
    any other `ValueError` that it is not valid YAML.

    >>> load_yaml('SIZES: !!python/object/apply:eval ["[2 ** x for x in range(5, 8)]"]')
    {'SIZES': [32, 64, 128]}
    """
    try:
        text = _NamedText(stream if isinstance(stream, str) else stream.read())
        text.name = source
        reader = loader(text)
    except (yaml.YAMLError, UnicodeError) as e:  # it is not text
        raise ValueError(f"{source} is not valid YAML: {e}") from e
    try:
        root = reader.get_single_node()
        if root is None:
            return None
        _refuse_endless(root)
        return reader.construct_document(root)
    except UnsafeYamlError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise UnsafeYamlError(None, None, f"{source}{line}: {e.problem}", None) from None
    except RecursionError:
        raise ValueError(f"{source} is not valid YAML: it is nested too deeply.") from None
    except (yaml.YAMLError, UnicodeError) as e:
        raise ValueError(f"{source} is not valid YAML: {e}") from e
    finally:
        reader.dispose()
