import pytest

from detectron2.utils.develop import create_dummy_class, create_dummy_func


def test_dummy_class():
    Dummy = create_dummy_class("Special", "specialpackage", "Run pip install specialpackage.")
    assert Dummy.__name__ == "Special"
    for use in (lambda: Dummy(), lambda: Dummy.method):
        with pytest.raises(ImportError, match=r"Special needs 'specialpackage'.*pip install"):
            use()


def test_dummy_function():
    dummy = create_dummy_func("compute", ("a", "b"))
    assert dummy.__name__ == "compute"
    with pytest.raises(ImportError, match="'a' and 'b'"):
        dummy(1, x=2)
