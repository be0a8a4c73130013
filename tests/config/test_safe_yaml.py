"""Reading YAML runs no code; expressions give numbers and lists."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.config import CfgNode, get_cfg
from detectron2.config.safe_yaml import ExpressionError, evaluate, load_yaml


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch {marker}"]',
        '!!python/object/apply:subprocess.check_output [["touch", "{marker}"]]',
        '!!python/object/new:os.system ["touch {marker}"]',
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/object:detectron2.config.CfgNode {{}}",
        "!!python/object/apply:eval [\"__import__('os').system('touch {marker}')\"]",
        '!!python/object/apply:eval ["().__class__.__bases__[0].__subclasses__()"]',
        "!!python/object/apply:eval [\"open('{marker}', 'w')\"]",
        '!!python/object/apply:eval ["9 ** 9 ** 9"]',
        '!!python/object/apply:eval ["range(10 ** 12)"]',
        '!!python/object/apply:eval ["[0] * 10 ** 9"]',
        '!!python/object/apply:eval {{args: ["1"], kwds: {{}}}}',
        '!!python/object/apply:eval ["1", {{}}]',
        "!!python/object/apply:exec [\"open('{marker}', 'w')\"]",
    ],
)
@pytest.mark.parametrize("allow_unsafe", [False, True])
def test_no_code_runs(write, tmp_path, value, allow_unsafe):
    marker = tmp_path / "marker"
    path = write("bad.yaml", "A: 1\nL: " + value.format(marker=marker) + "\n")
    for load in (CfgNode.load_yaml_with_base, CfgNode({"A": 1, "L": [1]}).merge_from_file):
        with pytest.raises(ValueError, match=r"bad\.yaml, line 2") as error:
            load(path, allow_unsafe=allow_unsafe)
        assert isinstance(error.value, yaml.constructor.ConstructorError)
    with pytest.raises(ValueError):
        CfgNode.load_cfg(f"A: {value.format(marker=marker)}")
    assert not marker.exists()


def test_published_anchor_sizes(write):
    text = '!!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]'
    cfg = get_cfg()
    cfg.merge_from_file(write("anchors.yaml", f"MODEL: {{ANCHOR_GENERATOR: {{SIZES: {text}}}}}\n"))
    expected = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    for row, expected_row in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        ("()", ()),
        ("[int(x * 0.1 * 1024) for x in range(1, 5)]", [102, 204, 307, 409]),
        ("tuple(i * 32 for i in range(10, 13))", (320, 352, 384)),
        ("[(a, b) for a, b in [(1, 2), (3, 4)] if a > 1 and not b == 5]", [(3, 4)]),
        ("[x if x % 2 else -x for x in range(4)]", [0, 1, -2, 3]),
        ("[[i + j for j in range(2)] for i in [10, 20]]", [[10, 11], [20, 21]]),
        ("[i * j for i in range(3) for j in range(i)]", [0, 0, 2]),
        ("[0.5, 1.0] * 2 + [round(2 / 3, 2)]", [0.5, 1.0, 0.5, 1.0, 0.67]),
        ("max(len([1, 2]), sum([1, 2])) // 2 + abs(-1.5) - min(1, 2)", 1.5),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("['res2', 'res3']", ["res2", "res3"]),
        ("1 < 2 <= 2 != 3 or 0", True),
        ("3 >= 4", False),
        ("list(range(0, 6, 2))", [0, 2, 4]),
        ("float(1)", 1.0),
        (" [None, True] ", [None, True]),
    ],
)
def test_expressions(text, expected):
    value = evaluate(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "x",
        "x.y",
        "(1).real",
        "[1][0]",
        "{}",
        "{1: 2}",
        "{1}",
        "lambda: 1",
        "f'{1}'",
        "b'x'",
        "1j",
        "...",
        "~1",
        "1 << 3",
        "1 @ 2",
        "1 in [1]",
        "1 is 1",
        "(x := 3)",
        "'%s' % 1",
        "'a' + 'b'",
        "'a' * 3",
        "[1] * 1.5",
        "[1] - [1]",
        "print(1)",
        "max(1, 2, key=abs)",
        "max(*[1, 2])",
        "__import__('os')",
        "().__class__",
        "[x.y for x in [1]]",
        "[y for x.y in [1]]",
        "[1 for x, y in [(1, 2, 3)]]",
        "[x for x in 3]",
        "1 / 0",
        "(-1) ** 0.5",
        "2 ** 2000",
        "10 ** 10 ** 10",
        "int('9' * 3000)",
        "range(10 ** 6)",
        "[0] * (10 ** 6)",
        "(10 ** 6) * [0]",
        "[[0] * 9000 for x in range(9000)]",
        "[list(r) for r in [range(9000)] * 9000]",
        "[1 for a in range(999) for b in range(999)]",
        "(" * 500 + ")" * 500,
        "-" * 3000 + "1",
        "1 + " * 1200 + "1",
        "[" + "1," * 3000 + "]",
        "int('x')",
        "len(3)",
        "1\x00",
    ],
)
def test_refused_expressions_are_shown(text):
    with pytest.raises(ExpressionError):
        evaluate(text)


def test_expression_must_be_text():
    with pytest.raises(ExpressionError, match="expected text"):
        evaluate(3)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_a_plain_value_or_an_error(text):
    try:
        value = evaluate(text)
    except ExpressionError:
        return
    assert isinstance(value, bool | int | float | str | list | tuple | None)


@pytest.mark.parametrize(
    "text",
    ["sum([[0]*9999]*9999,[])", "[[0]*9999]*9999", "[[[0]*999]*999]*999 == [[[0]*999]*999]*999", "round(1, -10**9)"],
)
def test_short_expressions_that_would_take_everything(text):
    with pytest.raises(ExpressionError, match="cannot evaluate"):
        evaluate(text)


def test_sums():
    assert evaluate("sum([1, 2.5])") == 3.5 and evaluate("sum([[1], [2]], [])") == [1, 2]


def aliases(levels, count=9):
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * count)}]" for i in range(levels)]
    return "\n".join(lines) + "\n"


def test_aliases_that_multiply():
    assert load_yaml(aliases(3))["a2"][0][0] == [1] * 9
    with pytest.raises(ValueError, match=r"x\.yaml, line 1: its aliases .* make [\d,]+ values"):
        load_yaml(aliases(9), "x.yaml")


def test_an_alias_within_itself():
    for text in ("a: &a [*a]", "a: &a {b: *a}", "&a [1, *a]"):
        with pytest.raises(ValueError, match="contains itself"):
            load_yaml(text, "x.yaml")


def test_many_values_without_multiplying_aliases():
    assert len(load_yaml("a: &a 1\nb: [" + "*a, " * 30_000 + "]")["b"]) == 30_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: !!bool x", 2),
        ("a: !!int ''", 1),
        ("\na: !!timestamp x", 2),
        ("a: 2020-13-45", 1),
        ("a: " + "9" * 10_000, 1),
        ("a: !!float x", 1),
        ("<<: 1", 1),
    ],
)
def test_values_that_the_library_stumbles_over(text, line):
    with pytest.raises(ValueError, match=r"x\.yaml") as info:
        load_yaml(text, "x.yaml")
    assert f"line {line}" in str(info.value)


@pytest.mark.parametrize("text", ["[" * 20_000, "\x00", "{a: " * 20_000])
def test_text_that_is_no_yaml(text):
    with pytest.raises(ValueError, match=r"x\.yaml"):
        load_yaml(text, "x.yaml")
