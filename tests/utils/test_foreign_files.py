"""Files of every kind, made by the libraries that write them."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from detectron2.utils.foreign_files import recognise


def picture(kind):
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, kind)
    return file.getvalue()


def onnx_model(**names):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["x2"])], "g", [value], [])
    return helper.make_model(graph, **names).SerializeToString()


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "1")
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return file.getvalue()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


OTHERS = {
    "jpeg": (picture("jpeg"), "a JPEG picture"),
    "png": (picture("png"), "a PNG picture"),
    "webp": (picture("webp"), "a WebP picture"),
    "tiff": (picture("tiff"), "a TIFF picture"),
    "bmp": (picture("bmp"), "a BMP picture"),
    "gif": (picture("gif"), "a GIF picture"),
    "page": (b"\n<!DOCTYPE html>\n<html>404 Not Found</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a pointer of Git LFS"),
    "onnx": (onnx_model(), "an ONNX model"),
    "onnx of PyTorch": (onnx_model(producer_name="pytorch"), "an ONNX model"),
    "tar": (tar(), "an archive"),
    "zip": (zipped("a/b.jpg", "c"), "a zip archive with a/b.jpg, c"),
    "torchscript": (zipped("m/data.pkl", "m/constants.pkl"), "an exported TorchScript program"),
    "pt2": (zipped("m/archive_format", "m/models/model.json"), "a program of torch.export"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file"),
    "coco": (json.dumps({"info": {}, "images": [], "annotations": []}).encode(), "a JSON file with annotations"),
    "predictions": (json.dumps([{"image_id": 1}]).encode(), "a JSON file with a list"),
    "transformers": (json.dumps({"model_type": "detr"}).encode(), "a config of Hugging Face transformers"),
    "yolo model": (b"# YOLO\nnc: 80\nbackbone:\n  - [-1, 1, Conv, [64, 3, 2]]\n", "a YAML file of Ultralytics"),
    "yolo data": (b"path: a\ntrain: images\nnames:\n  0: cat\n", "a YAML file of Ultralytics"),
    "yolo data 2": (b"names: [cat]\nval: images\n", "a YAML file of Ultralytics"),
    "mmdet": (b"model = dict(\n    type='FasterRCNN')\n", "a config of MMDetection"),
    "mmdet 2": (b"_base_ = 'a.py'\n", "a config of MMDetection"),
}
KNOWN = {
    "yaml": b"_BASE_: a.yaml\nMODEL:\n  WEIGHTS: a\n",
    "json": b'{"MODEL": {"META_ARCHITECTURE": "RetinaNet"}}',
    "lazy yaml": b"train:\n  max_iter: 1\nnames: [a]\n",
    "lazy": b"from a import b\nmodel = dict(width=8)\ntrain = dict(type=1)\n",
    "comments": b"# nothing yet\n",
    "torch": saved({"model": {}}),
    "old torch": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2),
    "pickle": pickle.dumps({"model": {"a": np.zeros(3)}}),
    "cut zip": zipped("a")[:20],
    "noise": np.random.default_rng(0).bytes(100),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_others(tmp_path, kind):
    content, want = OTHERS[kind]
    (tmp_path / "a").write_bytes(content)
    found = recognise(str(tmp_path / "a"))
    assert found is not None and found[0].startswith(want)


@pytest.mark.parametrize("kind", KNOWN)
def test_configs_and_weights(tmp_path, kind):
    (tmp_path / "a").write_bytes(KNOWN[kind])
    assert recognise(str(tmp_path / "a")) is None


def test_folder(tmp_path):
    assert recognise(str(tmp_path)) == ("a folder", "Give a file in it.")
