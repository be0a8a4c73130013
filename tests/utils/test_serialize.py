import copy
import pickle

import numpy as np
import pytest

from detectron2.utils.serialize import PicklableWrapper, plain


def test_closures_survive_pickling():
    offset = 3
    wrapped = PicklableWrapper(lambda x: x + offset)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(lambda x: x + offset)
    assert pickle.loads(pickle.dumps(wrapped))(4) == 7


def test_wrapping_twice_is_wrapping_once():
    function = len
    assert PicklableWrapper(PicklableWrapper(function))._obj is function


def test_attributes_are_forwarded():
    class Mapper:
        is_train = True

    wrapped = PicklableWrapper(Mapper())
    assert wrapped.is_train is True
    with pytest.raises(AttributeError, match="absent"):
        _ = wrapped.absent
    assert copy.copy(wrapped).is_train is True


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, {}),
        (None, None),
        ({1: (np.float32(0.5), np.zeros((1, 2)), b"x")}, {"1": [0.5, [[0.0, 0.0]], "b'x'"]}),
        ([True, "a", {"b": range(2)}, len], [True, "a", {"b": [0, 1]}, str(len)]),
    ],
)
def test_plain(value, expected):
    assert plain(value) == expected
