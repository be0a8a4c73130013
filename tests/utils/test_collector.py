import gc

import pytest

from detectron2.utils.collector import paused_gc


def test_nothing_inside():
    with paused_gc():
        pass
    assert gc.isenabled()


def test_rests_inside_and_goes_on_after_an_error():
    with pytest.raises(ValueError, match="stop"), paused_gc():
        assert not gc.isenabled()
        raise ValueError("stop")
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with paused_gc(), paused_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
