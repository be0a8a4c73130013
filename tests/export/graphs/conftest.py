"""Tests of what is written as ONNX need onnxruntime; the others run without it."""

import pytest

from detectron2.utils.env import TORCH_VERSION


@pytest.fixture(scope="session")
def onnx_installed():
    """Skip a test where the extra `onnx` is not installed, or PyTorch is too old to write such files."""
    if TORCH_VERSION < (2, 7):
        pytest.skip("ONNX files need PyTorch 2.7")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
