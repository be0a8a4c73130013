import csv
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detectron2.data import Metadata
from detectron2.evaluation.analysis.pixels import read_panoptic
from detectron2.inference import writers
from detectron2.inference.results import Result
from detectron2.inference.writers import ResultWriter, written_files
from detectron2.structures import Boxes, Instances

NAMES = Metadata(thing_classes=["person", "dog"], stuff_classes=["sky", "grass"])
SIZE = (24, 32)


def frame(path, index=0, source=None, seconds=None, error=None):
    image = np.full((*SIZE, 3), 10 * (index % 20), np.uint8)
    name = f"image {index}" if path is None else path
    return SimpleNamespace(image=image, name=name, path=path, index=index, time=seconds, error=error, source=source)


def objects(path, index=0, classes=(0, 1, 1), scores=(0.875, 0.75, 0.25), **kwargs):
    count = len(classes)
    boxes = torch.tensor([[2.0, 3.0, 12.5, 9.25]]) + torch.arange(count)[:, None]
    found = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.tensor(scores), pred_classes=torch.tensor(classes))
    found.pred_classes = found.pred_classes.long()
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    masks[:, 4:8, 5:10] = True
    found.pred_masks = masks
    return Result({"instances": found}, frame=frame(path, index, **kwargs), image_format="RGB", metadata=NAMES)


def panoptic(path, index=0):
    ids = torch.zeros(SIZE, dtype=torch.int32)
    ids[:10], ids[12:20, 4:14] = 1, 300
    segments = [{"id": 1, "category_id": 1, "isthing": False}, {"id": 300, "category_id": 1, "isthing": True}]
    return Result({"panoptic_seg": (ids, segments)}, frame=frame(path, index), image_format="RGB", metadata=NAMES)


def labels(path, index=0):
    scores = torch.zeros(2, *SIZE)
    scores[1, :6] = 1
    return Result({"sem_seg": scores}, frame=frame(path, index), image_format="RGB", metadata=NAMES)


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def read(path):
    return json.loads(Path(path).read_text())


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_nothing_at_all(tmp_path):
    with ResultWriter(tmp_path / "out", csv=True) as writer:
        pass
    assert read(tmp_path / "out/predictions.json") == []
    assert table(tmp_path / "out/predictions.csv") == []
    assert (writer.image_count, writer.object_count, writer.done, writer.failed) == (0, 0, set(), {})
    assert files_in(tmp_path / "out") == ["counts.csv", "predictions.csv", "predictions.json"]


def test_an_image_without_objects_has_its_picture_line_and_counts(tmp_path):
    with ResultWriter(tmp_path, csv=True, crops=True) as writer:
        writer.write(objects("a.jpg", classes=(), scores=()))
    assert read(tmp_path / "predictions.json") == [] and len(lines(tmp_path)) == 2
    assert table(tmp_path / "counts.csv") == [
        {"file": "a.jpg", "index": "0", "time": "", "person": "0", "dog": "0"},
    ]
    assert np.asarray(Image.open(tmp_path / "a.png")).shape == (*SIZE, 3)


def test_records_are_what_pycocotools_loads(tmp_path):
    with ResultWriter(tmp_path, csv=True, image_ids={"x/a.jpg": 17}, category_ids={"person": 1, "dog": 18}) as writer:
        writer.write(objects("x/a.jpg"))
    records = read(tmp_path / "predictions.json")
    assert {k: records[1][k] for k in ("image_id", "category_id", "category_name", "file_name", "height", "width")} == {
        "image_id": 17, "category_id": 18, "category_name": "dog", "file_name": "x/a.jpg", "height": 24, "width": 32,
    }  # fmt: skip
    assert records[0]["bbox"] == [2.0, 3.0, 10.5, 6.25] and records[0]["score"] == 0.875
    truth = COCO()
    truth.dataset = {"images": [{"id": 17, "height": 24, "width": 32}], "categories": [{"id": 1}, {"id": 18}]}
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "predictions.json"))
    assert [a["category_id"] for a in loaded.anns.values()] == [1, 18, 18]
    mask = loaded.annToMask(loaded.anns[1])
    assert mask.sum() == 20 and mask[4:8, 5:10].all()
    rows = table(tmp_path / "predictions.csv")
    assert [rows[2][k] for k in ("object", "class", "x1", "y2", "width", "area", "score", "angle")] == [
        "2", "dog", "4.0", "11.25", "10.5", "20", "0.25", "",
    ]  # fmt: skip
    assert table(tmp_path / "counts.csv") == [
        {"file": "x/a.jpg", "index": "0", "time": "", "person": "1", "dog": "2"},
    ]


def test_scores_and_classes_choose_objects(tmp_path):
    with ResultWriter(tmp_path, confidence=0.5, classes=["dog"]) as writer:
        writer.write(objects("a.jpg"))
    assert [r["score"] for r in read(tmp_path / "predictions.json")] == [0.75]
    assert writer.object_count == 1
    with pytest.raises(ValueError, match="no class 'cat'; it has person, dog"):
        ResultWriter(tmp_path / "b", classes=["cat"]).write(objects("a.jpg"))


def test_sub_folders_are_kept_and_names_never_collide(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    paths = [data / p for p in ("a/1.jpg", "b/1.jpg", "b/1.tif", "c/1.png", "d/semantic/1.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")
    with ResultWriter(out) as writer:
        for index, path in enumerate(paths):
            writer.write(objects(str(path), index, source=str(data if index != 4 else data / "d")))
        writer.write(labels("1.jpg", 5))  # its map has the name of the picture before
        writer.write(objects(None, 6))
        writer.write(objects(None, 7, source="https://example.org/x/cat.jpg?size=3"))
    pictures = [p for p in files_in(out) if p.endswith(".png")]
    assert pictures == [
        "1_2.png", "a/1.png", "b/1.png", "b/1_2.png", "c/1.png", "cat.png", "image_6.png", "semantic/1.png",
        "semantic/1_2.png",
    ]  # fmt: skip
    # into the folder of the images itself: none is written over
    with ResultWriter(data) as writer:
        writer.write(objects(str(data / "c/1.png"), source=str(data)))
    assert (data / "c/1.png").read_bytes() == b"an image" and (data / "c/1_2.png").exists()


def test_an_image_that_is_given_twice_is_written_once(tmp_path):
    with ResultWriter(tmp_path / "out") as writer:
        writer.write(objects("a.jpg", 0))
        writer.write(objects("a.jpg", 1))
        assert writer.is_done("a.jpg") and writer.is_done(os.path.abspath("a.jpg")) and not writer.is_done("b.jpg")
        assert writer.is_done(frame("a.jpg"))
    assert writer.image_count == 1 and len(lines(tmp_path / "out")) == 2


def test_images_that_cannot_be_read_are_tried_again(tmp_path):
    bad = Result({}, frame=frame("b.jpg", 1, error=OSError("damaged")), image_format="RGB", metadata=NAMES)
    with ResultWriter(tmp_path) as writer:
        writer.write(objects("a.jpg"))
        writer.write(bad)
    assert writer.failed == {"b.jpg": "damaged"} and not writer.is_done("b.jpg")
    with ResultWriter(tmp_path, resume=True) as writer:
        assert writer.is_done("a.jpg") and not writer.is_done("b.jpg")
        writer.write(objects("b.jpg", 1))
    assert [r["image_id"] for r in read(tmp_path / "predictions.json")] == [1, 1, 1, 2, 2, 2]


def test_ids_stay_unique_where_only_the_rest_is_predicted_on(tmp_path):
    with ResultWriter(tmp_path, save="none") as writer:
        writer.write(objects("a.jpg", 0, (0,), (0.5,)))
    with ResultWriter(tmp_path, save="none", resume=True) as writer:
        writer.write(objects("b.jpg", 0, (0,), (0.5,)))
    with ResultWriter(tmp_path, save="none", resume=True, image_ids={"c.jpg": 2, "d.jpg": 9}) as writer:
        writer.write(objects("c.jpg", 0, (0,), (0.5,)))
        writer.write(objects("d.jpg", 1, (1,), (0.5,)))
    assert [r["image_id"] for r in read(tmp_path / "predictions.json")] == [1, 2, 3, 9]
    assert writer.class_counts == {"person": 3, "dog": 1}


def test_crops(tmp_path):
    with ResultWriter(tmp_path, save="none", crops=True, maps=False) as writer:
        writer.write(objects("a.jpg", 7))
    found = [p for p in files_in(tmp_path) if p.startswith("crops")]
    assert found == ["crops/dog/a_1.png", "crops/dog/a_2.png", "crops/person/a_0.png"]
    pixels = np.asarray(Image.open(tmp_path / found[2]))  # (2, 3) to (12.5, 9.25)
    assert pixels.shape == (7, 11, 3) and (pixels == 70).all()
    bad = Metadata(thing_classes=["../evil", ".."])
    result = objects("b.jpg", 1)
    result.metadata = bad
    with ResultWriter(tmp_path / "in", save="none", crops=True) as writer:
        writer.write(result)
    assert [p for p in files_in(tmp_path / "in") if "crops" in p] == [
        "crops/_evil/b_0.png", "crops/class_1/b_1.png", "crops/class_1/b_2.png",
    ]  # fmt: skip


def test_panoptic(tmp_path):
    with ResultWriter(tmp_path, csv=True) as writer:
        writer.write(panoptic("a.jpg"))
        writer.write(panoptic("x/a.jpg", 1))
    content = read(tmp_path / "panoptic.json")
    assert content["categories"] == [
        {"id": 0, "name": "person", "isthing": 1},
        {"id": 1, "name": "dog", "isthing": 1},
        {"id": 2, "name": "sky", "isthing": 0},
        {"id": 3, "name": "grass", "isthing": 0},
    ]
    assert content["images"][0] == {"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}
    found = list(read_panoptic(str(tmp_path / "panoptic.json")))
    assert [image_id for image_id, *_ in found] == [1, 2]
    expected = panoptic("a.jpg").panoptic_seg[0].numpy()
    np.testing.assert_array_equal(found[0][1], expected)
    areas = {s["category_id"]: (s["id"], s["area"], s["bbox"]) for s in found[0][2]}
    assert areas == {3: (1, 320, [0, 0, 32, 10]), 1: (300, 80, [4, 12, 10, 8])}
    assert read(tmp_path / "predictions.json") == []
    assert table(tmp_path / "counts.csv")[1] == {
        "file": "x/a.jpg", "index": "1", "time": "", "person": "0", "dog": "1", "grass": "1",
    }  # fmt: skip


def test_labels_of_pixels(tmp_path):
    with ResultWriter(tmp_path, csv=True) as writer:
        writer.write(labels("a.jpg"))
        writer.write(labels("b.jpg", 1).filter(classes=["grass"]))
    whole, part = (np.asarray(Image.open(tmp_path / f"semantic/{n}.png")) for n in "ab")
    assert whole.dtype == np.uint8 and (whole[:6] == 1).all() and (whole[6:] == 0).all()
    assert (part[:6] == 1).all() and (part[6:] == 255).all()
    assert table(tmp_path / "areas.csv") == [
        {"file": "a.jpg", "index": "0", "time": "", "sky": "576", "grass": "192"},
        {"file": "b.jpg", "index": "1", "time": "", "sky": "0", "grass": "192"},
    ]
    records = read(tmp_path / "semantic.json")
    assert [(r["file_name"], r["category_id"]) for r in records] == [("a.jpg", 0), ("a.jpg", 1), ("b.jpg", 1)]


def test_another_run_replaces_what_the_first_wrote_and_nothing_else(tmp_path, caplog):
    with ResultWriter(tmp_path, csv=True) as writer:
        writer.write(objects("x/a.jpg", source="x"))
        writer.write(objects("b.jpg", 1))
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"2 images"):
        ResultWriter(tmp_path, replace=False)
    with ResultWriter(tmp_path) as writer:
        writer.write(objects("b.jpg", 0))
    assert files_in(tmp_path) == ["b.png", "mine.png", "predictions.json", "predictions.jsonl"]
    assert "(2 images) are replaced" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [{"confidence": 0.3}, {"classes": ["dog"]}, {"asked": {"model": "b.pth"}}, {"save": "jpg"}],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_cannot_be_resumed(tmp_path, changed):
    first = {"confidence": 0.5, "asked": {"model": "a.pth"}}
    with ResultWriter(tmp_path, **first) as writer:
        writer.write(objects("a.jpg"))
    before = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(ValueError, match="were made with"):
        ResultWriter(tmp_path, resume=True, **{**first, **changed})
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    ResultWriter(tmp_path, resume=True, **first)


def test_a_journal_of_something_else_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match="does not begin with the schema"):
        ResultWriter(tmp_path, resume=True)
    with ResultWriter(tmp_path / "b") as writer:
        writer.write(objects("a.jpg"))
    path = tmp_path / "b/predictions.jsonl"
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + b"{damaged\n" + content[1])
    with pytest.raises(ValueError, match="damaged in line 2"):
        ResultWriter(tmp_path / "b", resume=True)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="save is one of png, jpg, svg, pdf, none, got 'gif'"):
        ResultWriter(tmp_path, save="gif")


PATHS = [f"{folder}/{name}.jpg" for folder in "ab" for name in (1, 2)]
OPTIONS = {"csv": True, "crops": True, "image_ids": {path: 10 + i for i, path in enumerate(PATHS)}}


def everything(index):
    """Objects and a panoptic segmentation, so that there are files of all kinds."""
    result = panoptic(PATHS[index], index)
    result.instances = objects(PATHS[index], index).instances
    return result


def write_all(folder, resume):
    with ResultWriter(folder, resume=resume, **OPTIONS) as writer:
        for index, path in enumerate(PATHS):
            if not writer.is_done(path):
                writer.write(everything(index))


def check_complete(folder, whole):
    """The folder of a run that was stopped is that of one that was not."""
    assert files_in(folder) == files_in(whole)
    for name in files_in(whole):
        assert (Path(folder) / name).read_bytes() == (Path(whole) / name).read_bytes(), name
    assert [line["key"] for line in lines(folder)[1:]] == [os.path.abspath(path) for path in PATHS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    write_all(folder, resume=False)
    return folder


def run_and_die(folder, resume, moment):
    """In a process of its own: end without any clean-up before or after a file gets its name, or within a line."""
    count = 0

    def passes():
        nonlocal count
        count += 1
        if count == moment:
            os._exit(9)

    replace, write_line = os.replace, ResultWriter._write_line

    def stopping_replace(*args):
        passes()
        replace(*args)
        passes()

    def stopping_line(self, line):
        start = self._journal.tell()
        write_line(self, line)
        if count + 1 == moment:
            os.truncate(self._journal.name, (start + self._journal.tell()) // 2)
        passes()

    os.replace, ResultWriter._write_line = stopping_replace, stopping_line
    write_all(folder, resume)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_may_die_at_any_moment(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk has to be waited for: the machine goes on
    context = multiprocessing.get_context("fork")
    for moment in moments():
        folder = tmp_path / str(moment) / "out"
        process = context.Process(target=run_and_die, args=(folder, False, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        for name in files_in(folder):  # nothing is half-written
            if name.endswith(".png"):
                Image.open(folder / name).load()
            elif name.endswith(".json"):
                read(folder / name)
        write_all(folder, resume=True)
        check_complete(folder, whole)
    assert moment > 4 * 11


def moments():
    # those of an image, which has a picture, a map, three crops and a line, and a part of those that are alike
    yield from range(1, 18)
    yield from range(18, 500, 13)


def run_slowly(folder):
    with ResultWriter(folder, resume=True, **OPTIONS) as writer:
        for index, path in enumerate(PATHS):
            if not writer.is_done(path):
                writer.write(everything(index))
                time.sleep(0.005)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_signals_at_random_moments(tmp_path, whole, end):
    context, dice = multiprocessing.get_context("fork"), random.Random(0)
    folder = tmp_path / "out"
    for _ in range(6):
        process = context.Process(target=run_slowly, args=(folder,))
        process.start()
        process.join(dice.uniform(0.02, 0.3))
        getattr(process, end)()
        process.join()
    write_all(folder, resume=True)
    check_complete(folder, whole)


def test_a_process_may_die_while_it_writes_tables(tmp_path):
    with ResultWriter(tmp_path) as writer:
        writer.write(objects("a.jpg"))
    for name in ("predictions.json.12.tmp", "predictions.jsonl.12.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    assert ResultWriter(tmp_path, resume=True).image_count == 1
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == ["mine.tmp"]


def test_ctrl_c_leaves_the_tables_of_what_is_finished(tmp_path, whole, monkeypatch):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), ResultWriter(folder, **OPTIONS) as writer:
        writer.write(everything(0))
        with monkeypatch.context() as patch:
            patch.setattr(writers, "draw", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            writer.write(everything(1))
    assert {r["image_id"] for r in read(folder / "predictions.json")} == {10}
    assert [r["file"] for r in table(folder / "counts.csv")] == [PATHS[0]]
    write_all(folder, resume=True)
    check_complete(folder, whole)


def test_memory_does_not_grow_with_the_results(tmp_path):
    with ResultWriter(tmp_path, save="none") as writer:
        for index in range(50):
            writer.write(objects(f"{index}.jpg", index))
        kept = [v for v in vars(writer).values() if isinstance(v, (list, dict, set))]
        assert all(isinstance(item, (str, int)) for value in kept for item in value)
    assert len(read(tmp_path / "predictions.json")) == 150


def clip(count, start=0, path="clip.mp4"):
    return [objects(path, start + i, seconds=i / 10) for i in range(count)]


def test_a_video_becomes_a_video(tmp_path):
    video = pytest.importorskip("detectron2.inference.video")
    pytest.importorskip("cv2")
    with ResultWriter(tmp_path, csv=True) as writer:
        for result in [*clip(4), objects("a.jpg", 4)]:
            writer.write(result)
    assert [p for p in files_in(tmp_path) if "." in p and not p.startswith("pred")] == [
        "a.png",
        "clip.mp4",
        "counts.csv",
    ]
    assert len(list(video.VideoReader(str(tmp_path / "clip.mp4")))) == 4
    assert [float(r["time"] or -1) for r in table(tmp_path / "counts.csv")] == [0, 0.1, 0.2, 0.3, -1]
    assert writer.is_done("clip.mp4") and writer.image_count == 5
    places = [(r.get("frame"), r.get("time")) for r in read(tmp_path / "predictions.json")[::3]]
    assert places == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (None, None)]
    assert writer.class_counts == {"person": 5, "dog": 10}
    clipped = {os.path.realpath(tmp_path / name) for name in ("a.png", "clip.mp4")}
    assert written_files(tmp_path) == clipped


def test_an_unfinished_video_is_made_again(tmp_path):
    pytest.importorskip("detectron2.inference.video")
    pytest.importorskip("cv2")
    with pytest.raises(KeyboardInterrupt), ResultWriter(tmp_path, crops=True) as writer:
        writer.write(objects("a.jpg", 0))
        for result in clip(3, 1):
            writer.write(result)
        raise KeyboardInterrupt
    assert len(read(tmp_path / "predictions.json")) == 12  # what is finished, though not the whole video
    with ResultWriter(tmp_path, crops=True, resume=True) as writer:
        assert writer.is_done("a.jpg") and not writer.is_done("clip.mp4") and not (tmp_path / "clip.mp4").exists()
        for result in clip(4, 1):
            writer.write(result)
    found = [line for line in lines(tmp_path) if "key" in line]
    assert [line["index"] for line in found] == [0, 1, 2, 3, 4]
    assert "crops/dog/clip/000003_1.png" in files_in(tmp_path) and (tmp_path / "clip.mp4").exists()
    assert len(read(tmp_path / "predictions.json")) == 15
    with ResultWriter(tmp_path, crops=True, resume=True) as writer:
        assert writer.is_done("clip.mp4") and writer.image_count == 5


def test_a_damaged_video_is_tried_again(tmp_path):
    pytest.importorskip("detectron2.inference.video")
    pytest.importorskip("cv2")
    bad = Result({}, frame=frame("clip.mp4", 3, error=OSError("damaged")), image_format="RGB", metadata=NAMES)
    for resume in (False, True, True, False):
        with ResultWriter(tmp_path, resume=resume) as writer:
            assert not writer.is_done("clip.mp4") and not (tmp_path / "clip.mp4").exists()
            for result in [*clip(3), bad, objects("a.jpg", 4)]:
                writer.write(result)
        assert writer.failed == {"clip.mp4": "damaged"} and writer.image_count == 4
        assert written_files(tmp_path) == {os.path.realpath(tmp_path / name) for name in ("a.png", "clip.mp4")}
        files = {p for p in files_in(tmp_path) if "." in p}
        assert files == {"a.png", "clip.mp4", "predictions.json", "predictions.jsonl"}


@pytest.mark.parametrize("name", ["../other.txt", "/{}/other.txt", "a/../../other.txt"])
def test_a_journal_cannot_remove_files_elsewhere(tmp_path, name):
    """Folders of results are passed on; what one of them says is not a reason to remove anything outside of it."""
    other = tmp_path / "other.txt"
    other.write_text("mine")
    with ResultWriter(tmp_path / "out") as writer:
        writer.write(objects("/photos/a.jpg"))
    journal = tmp_path / "out/predictions.jsonl"
    header, line = lines(tmp_path / "out")
    line["files"] = [name.format(tmp_path)]
    journal.write_text("".join(json.dumps(x) + "\n" for x in (header, line)))
    with pytest.raises(ValueError, match="which is not in its folder; move it away"):
        ResultWriter(tmp_path / "out")
    assert other.read_text() == "mine" and journal.exists()


def test_two_processes_never_write_into_one_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    begun = ResultWriter(tmp_path)  # before the other process has written anything
    journal = tmp_path / "predictions.jsonl"
    with open(journal, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as the other process has it
        for resume in (False, True):
            with pytest.raises(
                FileExistsError, match=r"Another process is writing its results into .*: choose another"
            ):
                ResultWriter(tmp_path, resume=resume)
        with pytest.raises(FileExistsError, match="Another process"):
            begun.write(objects("a.jpg"))
        assert journal.read_bytes() == b"" and files_in(tmp_path) == ["predictions.jsonl"]
    with ResultWriter(tmp_path) as writer:
        writer.write(objects("a.jpg"))
        ResultWriter(tmp_path, resume=True)  # one of the same process that was not closed is no other
    assert len(lines(tmp_path)) == 2
