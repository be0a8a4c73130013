"""Tests of what is written as ONNX need onnxruntime; the others run without it."""

import pytest


@pytest.fixture(scope="session")
def onnx_installed():
    """Skip a test where the extra `onnx` is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
