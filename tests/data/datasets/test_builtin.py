"""The data sets that are registered from the start: names, metadata, and that nothing is touched before it is used."""

import functools
import json
import os
import subprocess
import sys

import pytest

from detectron2.data import DatasetCatalog
from detectron2.data.catalog import _DatasetCatalog, _MetadataCatalog
from detectron2.data.datasets import builtin


@pytest.fixture
def recorded(shared_dir):
    return json.loads((shared_dir / "facts" / "builtin_datasets.json").read_text())


@pytest.fixture
def catalogs(monkeypatch):
    """Fresh catalogs with the built-in entries, so that a test may use other folders."""
    datasets, metadata = _DatasetCatalog(), _MetadataCatalog()
    monkeypatch.setattr(builtin, "DatasetCatalog", datasets)
    monkeypatch.setattr(builtin, "MetadataCatalog", metadata)
    for name, entry in builtin._ENTRIES.items():
        datasets.register(name, functools.partial(builtin._load, name))
        metadata.register_lazy(name, entry.describe)
    return datasets, metadata


def test_names(recorded):
    assert sorted(builtin._ENTRIES) == sorted(recorded["datasets"])
    assert set(builtin._ENTRIES) <= set(DatasetCatalog.list())


def test_metadata(recorded, catalogs, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    for name, expected in recorded["datasets"].items():
        tables = recorded["tables"][expected.pop("tables")]
        metadata = catalogs[1].get(name).as_dict()
        assert metadata.pop("name") == name
        assert json.loads(json.dumps(metadata)) == {**tables, **expected}, name


def test_folder_is_read_when_used(catalogs, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/somewhere")
    metadata = catalogs[1].get("voc_2007_test")
    assert metadata.dirname == os.path.expanduser("~/somewhere/VOC2007")
    # A change afterwards does not part the data from its metadata.
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    with pytest.raises(FileNotFoundError, match="somewhere"):
        catalogs[0].get("voc_2007_test")


def test_missing_folder_says_where_it_looked(catalogs, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in builtin._ENTRIES:
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            catalogs[0].get(name)


def test_is_builtin():
    assert builtin.is_builtin("coco_2017_val") and not builtin.is_builtin("nothing")


def test_replaced_name_is_no_longer_builtin(catalogs):
    datasets, _ = catalogs
    assert builtin.is_builtin("coco_2017_val")
    datasets.remove("coco_2017_val")
    datasets.register("coco_2017_val", list)
    assert not builtin.is_builtin("coco_2017_val")


def test_loads(catalogs, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 3, "width": 4}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": c["id"], "name": c["name"]} for c in builtin_categories()],
    }
    (folder / "instances_val2017.json").write_text(json.dumps(content))
    (record,) = catalogs[0].get("coco_2017_val")
    assert record["file_name"] == str(tmp_path / "coco" / "val2017" / "1.jpg")


def builtin_categories():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return [c for c in COCO_CATEGORIES if c["isthing"]]


def test_import_touches_no_data(tmp_path):
    """An audit hook sees every file and folder that the import opens, lists or asks about through Python."""
    root = tmp_path / "all_my_data"
    root.mkdir()
    program = """
import sys
touched = []
def hook(event, arguments):
    if any(isinstance(a, (str, bytes)) and "all_my_data" in str(a) for a in arguments):
        touched.append((event, arguments))
sys.addaudithook(hook)
import detectron2.data
from detectron2.data import DatasetCatalog
assert "coco_2017_train" in DatasetCatalog.list()
lvis = [m for m in sys.modules if "lvis_v" in m]
assert not touched and not lvis, (touched, lvis)
# The hook does notice: loading opens a file there.
try:
    DatasetCatalog.get("voc_2007_train")
except FileNotFoundError:
    assert touched
    print("fine")
"""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "fine", result.stderr
