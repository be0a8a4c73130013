import copy
import pickle

import pytest

from detectron2.utils.serialize import PicklableWrapper


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
