"""``tools/visualize_json_results.py`` and ``tools/visualize_data.py``."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from tests.engine.conftest import restore_logging

__all__ = ["restore_logging"]

pytestmark = pytest.mark.usefixtures("restore_logging")


@pytest.fixture
def tool(repo_root):
    """Return the module of a script."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, repo_root / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def results(shapes_dir, tmp_path):
    """The ground truth as results with the score 0.9, and once more with 0.1 and the box of the whole image."""
    content = json.loads((shapes_dir / "annotations.json").read_text())
    entries = []
    for a in content["annotations"]:
        keys = {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")}
        entries += [{**keys, "score": 0.9}, {**keys, "bbox": [0, 0, 128, 96], "score": 0.1}]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    return tmp_path / "results.json"


def pictures(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in Path(folder).rglob("*.*")}


@pytest.mark.parametrize("by_name", [True, False])
def test_results_beside_the_truth(tool, results, shapes, shapes_dir, tmp_path, by_name):
    data = ["--dataset", shapes] if by_name else ["--dataset", f"{shapes_dir}/annotations.json"]
    images = [] if by_name else ["--images", f"{shapes_dir}/images"]
    out = tmp_path / "out"
    tool("visualize_json_results").main(["--input", str(results), "--output", str(out), *data, *images])
    drawn = pictures(out)
    assert set(drawn) == {p.name for p in (shapes_dir / "images").iterdir()}
    for name, picture in drawn.items():
        plain = np.asarray(Image.open(shapes_dir / "images" / name)).astype(int)
        assert picture.shape == (96, 256, 3)
        for half in (picture[:, :128], picture[:, 128:]):  # objects are drawn, the background is as it was
            changed = np.abs(half - plain).max(axis=2) > 60
            assert 0.01 < changed.mean() < 0.9


def test_the_threshold_and_the_number(tool, results, shapes, tmp_path):
    module = tool("visualize_json_results")
    base = ["--input", str(results), "--dataset", shapes, "--num", "2"]
    module.main([*base, "--output", str(tmp_path / "a")])
    module.main([*base, "--output", str(tmp_path / "b"), "--conf-threshold", "0.95"])
    some, none = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert len(some) == len(none) == 2
    for name, picture in none.items():
        assert np.abs(picture[:, 128:] - some[name][:, 128:]).max() == 0
        assert np.abs(picture[:, :128] - some[name][:, :128]).max() > 60


def test_the_images_are_not_written_over(tool, results, config, shapes, shapes_dir):
    folder = shapes_dir / "images"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    words = ["--input", str(results), "--dataset", shapes, "--output", str(folder)]
    with pytest.raises(ValueError, match="has the images themselves, which would be written over: give another"):
        tool("visualize_json_results").main(words)
    words = ["--source", "annotation", *config, "--output-dir", f"{folder}/"]
    with pytest.raises(ValueError, match=r"has the images themselves, such as .*: give another"):
        tool("visualize_data").main(words)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_boxes_of_results(tool):
    module = tool("visualize_json_results")
    entry = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.6, "keypoints": [1, 2, 0.5]}
    found = module.create_instances([{**entry, "score": 0.9}, entry, {**entry, "score": 0.2}], (8, 9), 0.5, {7: 0})
    assert found.pred_boxes.tensor.tolist() == [[1, 2, 4, 6]] * 2
    assert found.scores.tolist() == pytest.approx([0.6, 0.9])  # the best is drawn last
    assert found.pred_classes.tolist() == [0, 0]
    assert found.pred_keypoints.tolist() == [[[1.5, 2.5, 0.5]]] * 2
    assert len(module.create_instances([], (8, 9), 0.5, {})) == 0


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {}),
        ({"thing_dataset_id_to_contiguous_id": {3: 0, 90: 1}, "thing_classes": ["a", "b"]}, {3: 0, 90: 1}),
        ({"evaluator_type": "lvis", "thing_classes": ["a", "b"]}, {1: 0, 2: 1}),
        ({"thing_classes": ["a", "b"]}, {0: 0, 1: 1}),
    ],
)
def test_labels(tool, metadata, expected):
    assert tool("visualize_json_results").labels_of_categories(Metadata().set(**metadata)) == expected


def test_wrong_results_are_explained(tool, results, shapes, tmp_path):
    module = tool("visualize_json_results")
    entries = json.loads(results.read_text())

    def run(content):
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        module.main(["--input", str(tmp_path / "wrong.json"), "--output", str(tmp_path / "o"), "--dataset", shapes])

    with pytest.raises(ValueError, match=r"categories \[99\], which the data set does not have"):
        run([{**e, "category_id": 99} for e in entries])
    with pytest.raises(ValueError, match=r"No image of .*wrong\.json is in e2e_shapes: the results are of"):
        run([{**e, "image_id": -1} for e in entries])
    for content in ({"a": 1}, [{"image_id": 1}]):
        with pytest.raises(ValueError, match="not in COCO's result format"):
            run(content)
    with pytest.raises(KeyError, match="Did you mean 'e2e_shapes'"):
        module.main(["--input", str(results), "--output", str(tmp_path), "--dataset", "e2e_shape"])


@pytest.fixture
def config(cfg, tmp_path):
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    return ["--config-file", str(tmp_path / "tiny.yaml"), "--output-dir", str(tmp_path / "out")]


def test_annotations_of_a_config(tool, config, shapes_dir, tmp_path):
    tool("visualize_data").main(["--source", "annotation", *config])
    drawn = pictures(tmp_path / "out")
    assert set(drawn) == {f"{p.stem}.jpg" for p in (shapes_dir / "images").iterdir()}
    assert {p.shape for p in drawn.values()} == {(96, 128, 3)}


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_what_the_loader_gives(tool, config, shapes_dir, tmp_path, image_format):
    options = ["INPUT.RANDOM_FLIP", "none", "INPUT.FORMAT", image_format, "INPUT.MIN_SIZE_TRAIN", "(192,)"]
    size = ["INPUT.MAX_SIZE_TRAIN", "300"]
    tool("visualize_data").main(["--source", "dataloader", *config, "--num", "8", *options, *size])
    drawn = pictures(tmp_path / "out")
    assert len(drawn) == 8 and {p.shape for p in drawn.values()} == {(192, 256, 3)}
    name = next(n for n in drawn if "_" not in n)
    (file,) = (p for p in (shapes_dir / "images").iterdir() if f"{p.stem}.jpg" == name)
    plain = np.asarray(Image.open(file).resize((256, 192), Image.Resampling.BILINEAR)).astype(int)
    unchanged = np.abs(drawn[name] - plain).max(axis=2) < 30  # the background, in the same colours
    assert 0.1 < unchanged.mean() < 0.99


def test_nothing_to_draw(tool):
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        tool("visualize_data").main(["--source", "annotation"])


def test_pictures_in_a_window(tool, config, monkeypatch, tmp_path):
    module, shown = tool("visualize_data"), []
    monkeypatch.setattr(module, "show", lambda name, picture: shown.append(picture.shape))
    module.main(["--source", "annotation", *config, "--show", "--num", "2"])
    assert shown == [(96, 128, 3)] * 2 and not (tmp_path / "out").exists()


def test_registered_names_remain(tool, results, shapes, tmp_path):
    before = set(DatasetCatalog.list())
    tool("visualize_json_results").main(
        ["--input", str(results), "--output", str(tmp_path / "o"), "--dataset", shapes, "--num", "1"]
    )
    assert set(DatasetCatalog.list()) == before and MetadataCatalog.get(shapes).thing_classes
