"""The program beside an exported model: its messages, its files, and that it needs neither PyTorch nor this library."""

import ast
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from detectron2.export.runtime import predict, standalone_source
from detectron2.export.runtime.predict import LAYOUT, Predictor, read_metadata
from tests.export.runtime.made_up import metadata, picture, write_model

SIZE = (120, 200)
# A program in which PyTorch and this library cannot be imported.
GUARD = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(name + " is not there")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder, *arguments, refused=("torch", "torchvision", "detectron2")):
    (folder / "guard.py").write_text(GUARD.format(refused=set(refused)))
    command = [sys.executable, str(folder / "guard.py"), str(folder / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": "", "HOME": str(folder)})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, with_metadata=True)
    Image.fromarray(picture(*SIZE)).save(folder / "photo.png")
    return folder


def expected():
    """What the model of the tests finds in the picture of the tests."""
    height, width = SIZE
    share = picture(*SIZE).mean() / 800
    boxes = [[0.1 * width, 0.2 * height, 0.6 * width, 0.7 * height], [0.5 * width, 0.4 * height, 190, 0.9 * height]]
    return np.array(boxes), np.array([0.6 + share, 0.1 + share])


def test_program_is_one_file_of_its_own():
    source = standalone_source()
    tree = ast.parse(source)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) if n.level == 0}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {
        "numpy", "PIL", "onnxruntime", "openvino",
    }  # fmt: skip
    assert not any(n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom))
    names = Counter(n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
    assert [name for name, n in names.items() if n > 1] == [] and names["postprocess"] == names["draw"] == 1
    assert source.startswith("#!/usr/bin/env python\n") and "predict.py photo.jpg" in ast.get_docstring(tree)


def test_program_runs_without_pytorch(model):
    done = run(model, "photo.png", "--output", "drawn.png", "--json", "results.json", "--threshold", "0.05")
    assert (done.returncode, done.stderr) == (0, "")
    assert "photo.png: 2 objects (1 cat, 1 bird)" in done.stdout and "-> drawn.png" in done.stdout
    (result,) = json.loads((model / "results.json").read_text())
    boxes, scores = expected()
    assert result["file"] == "photo.png" and result["size"] == list(SIZE)
    assert [i["name"] for i in result["instances"]] == ["cat", "bird"]
    assert np.allclose([i["box"] for i in result["instances"]], boxes, atol=1e-3)
    assert np.allclose([i["score"] for i in result["instances"]], scores, atol=1e-4)
    drawn = np.asarray(Image.open(model / "drawn.png"))
    assert drawn.shape == (*SIZE, 3) and (drawn != picture(*SIZE)).any()


def test_program_writes_a_drawing_for_each_image(model, tmp_path):
    Image.fromarray(picture(40, 50, seed=1)).save(tmp_path / "photo.png")
    done = run(model, "photo.png", tmp_path / "photo.png", "--output", tmp_path / "drawn")
    assert done.returncode == 0 and done.stdout.count("1 object (1 cat)") == 2  # the other score is below 0.5
    assert Image.open(tmp_path / "drawn/photo.png").size == (SIZE[1], SIZE[0])
    assert Image.open(tmp_path / "drawn/photo_2.png").size == (50, 40)
    assert run(model, "photo.png", tmp_path / "photo.png").returncode == 0
    assert Image.open(model / "photo_prediction.png").size == (SIZE[1], SIZE[0])
    assert Image.open(model / "photo_2_prediction.png").size == (50, 40)


def test_nothing_is_written_over(model, tmp_path):
    """Neither a photo, by its own drawing or by another, nor a drawing."""
    photos = [tmp_path / "a.png", tmp_path / "b/a.png", tmp_path / "a_2.png"]
    for i, photo in enumerate(photos):
        photo.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(40, 50, seed=i)).save(photo)
    before = {photo: photo.read_bytes() for photo in photos}
    done = run(model, photos[0], "--output", photos[0])
    assert done.returncode == 1 and "the image itself: give another file, or a folder" in done.stderr
    for folder, names in ((tmp_path, ["a_2_2.png", "a_3.png", "a_4.png"]), (tmp_path / "c", ["a.png", "a_2.png"])):
        there = set(tmp_path.iterdir())
        done = run(model, *photos[: len(names)], "--output", folder)
        assert done.returncode == 0, done.stderr
        made = folder.iterdir() if folder not in there and folder != tmp_path else set(tmp_path.iterdir()) - there
        assert sorted(path.name for path in made) == names
    assert {photo: photo.read_bytes() for photo in photos} == before


def test_bad_images_are_named_and_others_are_done(model, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    out = tmp_path / "new" / "results.json"
    done = run(model, tmp_path / "text.jpg", "photo.png", tmp_path / "missing.jpg", "--json", out)
    assert done.returncode == 1 and "photo.png: 1 object" in done.stdout and "Traceback" not in done.stderr
    assert "text.jpg is damaged, or not an image" in done.stderr and "There is no image" in done.stderr
    assert [r["file"] for r in json.loads(out.read_text())] == ["photo.png"]


def test_what_is_asked_for_wrongly_is_said(model, tmp_path):
    for arguments, message in (
        (("photo.png", "photo.png", "--output", tmp_path / "drawn.png"), "there are 2 images: give a folder"),
        (("photo.png", "--output", tmp_path / "drawn.doc"), "does not write '.doc' files: use .png"),
        (("photo.png", "--model", tmp_path / "none"), "no exported model at"),
        ((tmp_path,), "is a folder: name the images in it"),
    ):
        done = run(model, *arguments)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_runtime_is_named(model):
    done = run(model, "photo.png", refused=("onnxruntime",))
    assert done.returncode == 1 and "pip install onnxruntime" in done.stderr and "Traceback" not in done.stderr


def test_predictor_from_folder_and_from_the_file_alone(model, tmp_path):
    (tmp_path / "alone.onnx").write_bytes((model / "model.onnx").read_bytes())
    boxes, scores = expected()
    for source in (model, model / "model.onnx", str(tmp_path / "alone.onnx")):
        predictor = Predictor(source)
        for image in (model / "photo.png", picture(*SIZE), Image.open(model / "photo.png")):
            result = predictor(image)
            assert np.allclose(result["boxes"], boxes, atol=1e-3) and np.allclose(result["scores"], scores, atol=1e-4)
        assert len(predictor(picture(*SIZE), threshold=0.5)["boxes"]) == 1
        assert len(predictor(picture(*SIZE), threshold=0.99)["boxes"]) == 0
        assert predictor.meta["classes"] == ["cat", "dog", "bird"]


def test_openvino_gives_the_same(model, tmp_path):
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.convert_model(model / "model.onnx"), tmp_path / "model.xml", compress_to_fp16=False)
    meta = metadata(artifact="model.xml", format="openvino")
    (tmp_path / "model.json").write_text(json.dumps(meta))
    got, want = Predictor(tmp_path)(picture(*SIZE)), Predictor(model)(picture(*SIZE))
    assert np.allclose(got["boxes"], want["boxes"], atol=1e-3) and np.allclose(got["scores"], want["scores"], atol=1e-5)
    assert got["classes"].tolist() == want["classes"].tolist() == [0, 2]


def test_images_are_resized_and_results_come_back(tmp_path):
    """The session sees the small image; the results are in the frame of the original one."""
    seen = {}

    def session(inputs):
        seen.update(inputs)
        outputs = {"boxes": np.array([[[10, 20, 30, 40]]], np.float32), "scores": np.array([[0.5]], np.float32)}
        return {**outputs, "classes": np.array([[1]]), "count": np.array([1])}

    write_folder(tmp_path, metadata(short_edge=60, size=[64, 128]))
    result = Predictor(tmp_path, session)(picture(120, 200), threshold=0.25)
    assert seen["images"].shape == (1, 3, 64, 128) and seen["image_sizes"].tolist() == [[60, 100]]
    assert seen["score_threshold"].shape == () and seen["score_threshold"] == 0.25
    assert result["boxes"].tolist() == [[20, 40, 60, 80]] and result["classes"].tolist() == [1]
    Predictor(tmp_path, session)(picture(120, 200))
    assert np.isclose(seen["score_threshold"], 0.05)


def write_folder(folder, meta, artifact="model.onnx"):
    (folder / "model.json").write_text(json.dumps(meta))
    (folder / artifact).write_bytes(b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are damaged"),
        ('{"layout": 1, ', "are damaged"),
        ("[]", "name no layout"),
        ("{}", "name no layout"),
        (json.dumps({"layout": LAYOUT + 1}), f"has layout {LAYOUT + 1}, .* reads layouts up to {LAYOUT}: use the pre"),
        ('{"layout": 1}', "lack artifact, task, inputs, outputs, preprocessing: "),
        (json.dumps({**metadata(), "preprocessing": {"channels": "RGB"}}), "lack preprocessing.short_edge, prepr"),
        (json.dumps({**metadata(), "preprocessing": None}), "damaged: preprocessing is None, not an object"),
        (json.dumps({**metadata(), "artifact": 3}), "damaged: artifact is 3, not a name. Copy the file again"),
        (json.dumps({**metadata(), "artifact": "../model.onnx"}), "not the name of a file in this folder"),
        (json.dumps({**metadata(), "outputs": "boxes"}), "damaged: outputs is 'boxes', not a list"),
        (json.dumps({**metadata(), "size": "abc"}), "damaged: size is 'abc', not a height and a width in pixels"),
        (json.dumps({**metadata(), "size": [0, 64]}), "size is .0, 64., not a height"),
        (json.dumps({**metadata(), "task": "poetry"}), "damaged: task is 'poetry', not one of instances, keypoints, "),
        (json.dumps({**metadata(), "format": "tflite"}), "damaged: format is 'tflite', not one of onnx, openvino, pt2"),
        (json.dumps({**metadata(), "outputs": ["boxes", 3]}), r"outputs is \['boxes', 3\], not a list of names"),
        (json.dumps({**metadata(), "score_threshold": "low"}), "score_threshold is 'low', not a number"),
        (json.dumps({**metadata(), "mask_threshold": True}), "mask_threshold is True, not a number"),
        (json.dumps(metadata(short_edge=-800)), "preprocessing.short_edge is -800, not a number of pixels, or 0"),
        (json.dumps(metadata(short_edge="800")), "preprocessing.short_edge is '800', not a number of pixels"),
        (
            json.dumps(metadata(long_edge=None, square=1.5)),
            "long_edge is None, not .*; preprocessing.square is 1.5, no",
        ),
        (json.dumps(metadata(channels="GBR")), "preprocessing.channels is 'GBR', not one of BGR, RGB"),
        (json.dumps(metadata(exif=1)), "preprocessing.exif is 1, not one of apply, ignore"),
    ],
)
def test_bad_metadata_are_refused(text, message, tmp_path):
    (tmp_path / "model.json").write_text(text)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path)


def test_missing_files_are_named(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="no exported model at"):
        read_metadata(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no model\.json for"):
        read_metadata(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(metadata()))
    with pytest.raises(FileNotFoundError, match=r"describes 'model\.onnx', which is not in its folder"):
        read_metadata(tmp_path)
    (tmp_path / "other.xml").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no model\.json for"):
        read_metadata(tmp_path / "other.xml")


def test_files_that_do_not_belong_together_are_refused(tmp_path, model):
    write_folder(tmp_path, metadata(outputs=("boxes", "masks")))
    (tmp_path / "model.onnx").write_bytes((model / "model.onnx").read_bytes())
    with pytest.raises(ValueError, match=r"no output masks, which model\.json names"):
        Predictor(tmp_path)


def test_damaged_model_is_an_error_of_the_program(model, tmp_path):
    write_folder(tmp_path, metadata())
    done = run(model, "photo.png", "--model", tmp_path)
    assert done.returncode == 1 and "cannot load" in done.stderr and "Traceback" not in done.stderr


def test_formats_of_pytorch_need_a_session(tmp_path):
    write_folder(tmp_path, metadata(artifact="model.ts"), "model.ts")
    with pytest.raises(ValueError, match=r"model\.ts needs PyTorch.* give Predictor a session"):
        Predictor(tmp_path)


def test_threshold_of_a_model_without_one_is_refused(tmp_path):
    write_folder(tmp_path, metadata("semantic", ["sem_seg"], inputs=["images", "image_sizes"]))

    def session(inputs):
        assert set(inputs) == {"images", "image_sizes"}
        return {"sem_seg": np.zeros((1, 3, *inputs["images"].shape[2:]), np.float32)}

    predictor = Predictor(tmp_path, session)
    assert (predictor(picture(*SIZE))["sem_seg"] == 0).all()
    with pytest.raises(ValueError, match="'semantic' has no score threshold"):
        predictor(picture(*SIZE), threshold=0.5)


def test_program_draws_segments_and_says_what_they_are(tmp_path, monkeypatch, capsys):
    meta = metadata("semantic", ["sem_seg"], inputs=["images", "image_sizes"], stuff_classes=["road", "sky"])
    write_folder(tmp_path, meta)
    Image.fromarray(picture(*SIZE)).save(tmp_path / "photo.png")

    def session(inputs):
        scores = np.zeros((1, 2, *inputs["images"].shape[2:]), np.float32)
        scores[:, 1, :50] = 1
        return {"sem_seg": scores}

    monkeypatch.setattr(predict, "create_session", lambda artifact, meta: session)
    names = [str(tmp_path / name) for name in ("photo.png", "out.png", "out.json")]
    assert predict.main([names[0], "--model", str(tmp_path), "--output", names[1], "--json", names[2]]) == 0
    assert "2 segments (1 road, 1 sky)" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert [(s["name"], sum(s["mask"]["counts"][1::2])) for s in result["segments"]] == [
        ("road", 14000),
        ("sky", 10000),
    ]
