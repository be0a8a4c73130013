"""Plain data comes back as it was; anything else is refused before it runs."""

import argparse
import collections
import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from detectron2.utils.safe_pickle import UnsafePickleError, load_plain_pickle


def load(data, **extra):
    return load_plain_pickle(io.BytesIO(data), name="some.pkl", extra=extra)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


PLAIN = [
    None,
    {},
    [],
    (1, 2.5, True, "text", b"bytes", 1j),
    {"a": [{"b": (1,)}], 3: {4, 5}, "f": frozenset({1}), "ba": bytearray(b"x")},
    collections.OrderedDict(a=1, b=[2]),
    np.zeros(0),
    np.zeros((0, 4), np.float32),
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([True, False]),
    np.array(["ab", "c"]),
    np.array([1, 2], dtype=">i4").astype("=i4"),
    np.float32(1.5),
    np.int64(7),
    {"boxes": [np.ones((2, 4)), np.zeros((0, 4))], "ids": [1, "b"]},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_data(value, protocol):
    assert same(value, load(pickle.dumps(value, protocol=protocol)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])  # torch.save writes protocol 2
@pytest.mark.parametrize("value", [{}, {"lr": 1e-4, "sizes": (480, 800), "more": argparse.Namespace(name="coco")}])
def test_arguments_of_a_program(value, protocol):
    assert load(pickle.dumps([argparse.Namespace(**value)], protocol=protocol)) == [argparse.Namespace(**value)]


def test_arguments_hold_arrays():
    found = load(pickle.dumps(argparse.Namespace(scales=np.arange(3), inner=[np.float32(2)])))
    assert found.scales.tolist() == [0, 1, 2] and found.inner == [2]


def test_arguments_with_the_state_of_another_object():
    data = b"\x80\x02cargparse\nNamespace\n)\x81(K\x01K\x02tb."
    with pytest.raises(UnsafePickleError, match=r"argparse\.Namespace of something other"):
        load(data)


def test_arrays_can_be_changed():
    array = load(pickle.dumps(np.zeros(3)))
    array[0] = 1
    assert array.tolist() == [1, 0, 0]


def test_other_byte_order():
    array = np.array([1, 256], dtype=">u2")
    result = load(pickle.dumps(array))
    assert result.tolist() == [1, 256] and result.dtype.isnative


def test_written_by_python_2():
    # A dict with a str (bytes of Python 2) as key and an array whose data are a str.
    data = (
        b"\x80\x02}U\x05boxescnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfftbs."
    )
    assert load(data)["boxes"].tolist() == [7, 255]


class _Reduces:
    def __init__(self, *parts):
        self._parts = parts

    def __reduce__(self):
        return self._parts


HOSTILE = {
    "os.system": lambda: _Reduces(os.system, ("touch {}",)),
    "eval": lambda: _Reduces(eval, ("open('{}', 'w')",)),
    "nested": lambda: {"a": [(_Reduces(exec, ("open('{}', 'w')",)),)]},
    "getattr": lambda: _Reduces(getattr, ("", "join")),
    "of this library": lambda: load_plain_pickle,
    "object array": lambda: np.array([{}, []], dtype=object),
    "structured array": lambda: np.zeros(2, dtype=[("a", "f4")]),
    "dates": lambda: np.zeros(2, dtype="M8[s]"),
    "type": lambda: int.__class__,
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", HOSTILE)
def test_everything_else_is_refused(kind, protocol, tmp_path):
    data = pickle.dumps(HOSTILE[kind](), protocol=protocol)
    target = tmp_path / "made by the pickle"
    with pytest.raises(UnsafePickleError, match=r"'some\.pkl' was not loaded: it holds") as e:
        load(data)
    assert isinstance(e.value, ValueError) and isinstance(e.value, pickle.UnpicklingError)
    assert not target.exists()


def test_the_refused_name_is_shown():
    with pytest.raises(UnsafePickleError, match=rf"{os.system.__module__}\.system"):
        load(pickle.dumps(os.system))


def test_persistent_references_are_refused():
    with pytest.raises(ValueError, match="outside the file"):
        load(b"\x80\x04\x8c\x01xQ.")


def test_nothing_outlives_a_file():
    """A pickle may set attributes of what it names; that must not change what the next one gets."""
    # The state of `numpy.dtype`, a (dict, slots) pair, would give the class another attribute.
    data = b"\x80\x02cnumpy\ndtype\nN}U\x05_makeccollections\nOrderedDict\ns\x86b."
    assert "BUILD" in [op.name for op, _, _ in pickletools.genops(data)]
    with pytest.raises(UnsafePickleError, match="the state of a type"):
        load(data)
    assert load(pickle.dumps(np.arange(3))).tolist() == [0, 1, 2]


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1] * 100)[:20], b"\x80\x04K\x01R."])
def test_damaged(data):
    with pytest.raises(ValueError, match="not a readable pickle"):
        load(data)


def test_extra_names():
    data = pickle.dumps(os.system)
    name = f"{os.system.__module__}.system"
    assert load(data, **{name: lambda: "harmless"})() == "harmless"


def repeated_tuples(levels):
    value = 1
    for _ in range(levels):
        value = (value,) * 10
    return pickle.dumps({"model": {"w": value}}, 2)


class TestSmallPicklesThatTakeEverything:
    def test_tuples_that_repeat_each_other(self):
        assert load(repeated_tuples(3))["model"]["w"][0][0] == (1,) * 10
        with pytest.raises(ValueError, match="repeat each other without end"):
            load(repeated_tuples(30))
        with pytest.raises(ValueError, match="repeat each other without end"):  # hashed when it becomes a key
            load(b"\x80\x02}(" + b"K\x01" + b"2\x86" * 40 + b"K\x01u.")

    @pytest.mark.parametrize("kind", ["set", "list", "tuple", "frozenset", "bytes", "bytearray"])
    @pytest.mark.parametrize("size", [b"I10000000000\n", b"c__builtin__\nrange\n(I0\nI10000000000\ntR"])
    def test_containers_of_a_named_size(self, kind, size):
        with pytest.raises(UnsafePickleError, match=f"some.pkl.*{kind}"):
            load(b"c__builtin__\n" + kind.encode() + b"\n(" + size + b"tR.")

    def test_text_of_a_container(self):
        with pytest.raises(UnsafePickleError, match="the text of a list"):
            load(b"c__builtin__\nstr\n((ltR.")

    @pytest.mark.parametrize("opcode", [b"\x96", b"\x8e", b"\x8d", b"\x95"])
    @pytest.mark.parametrize("size", [8 * 10**9, 2**62])
    def test_sizes_beyond_the_end_of_the_file(self, opcode, size):
        with pytest.raises(ValueError, match="is not a readable pickle"):
            load(b"\x80\x05" + opcode + size.to_bytes(8, "little") + b"abc.")

    def test_what_python_writes_is_read(self):
        value = {"a": bytearray(b"xy"), "b": b"", "c": {1, 2}, "d": [frozenset()], "e": range(3), "f": (((1, 2), 3), 4)}
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert load(pickle.dumps(value, protocol)) == value
