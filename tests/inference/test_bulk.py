"""Runs with shards: every image exactly once, whatever happens to the processes, and memory that does not grow."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detectron2.data import DatasetMapper
from detectron2.inference import BulkRun, Predictor, list_images, read_shards
from detectron2.structures import Boxes, Instances


class Model(nn.Module):
    """Finds one object, whose class is the first value of the image; it may take its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))
        self.seconds = seconds

    def forward(self, inputs):
        time.sleep(self.seconds * len(inputs))
        outputs = []
        for x in inputs:
            found = Instances((x["height"], x["width"]), pred_boxes=Boxes([[0.5, 1, 3, 4]]))
            found.scores, found.pred_classes = torch.tensor([0.75]), x["image"][0, 0, :1].long()
            found.pred_masks = torch.ones(1, x["height"], x["width"], dtype=torch.bool)
            outputs.append({"instances": found})
        return outputs


def predictor(seconds=0.0, **options):
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    return Predictor(Model(seconds).eval(), mapper=mapper, optimize=False, **{"batch_size": 2, **options})


def write(folder, count, suffix=".png"):
    """Images whose values are their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (6, 5), (i, i, i)).save(folder / f"{i:03d}{suffix}")
    return folder


def classes(folder):
    return [row["objects"][0]["class_id"] for row in read_shards(folder)]


def parts(folder):
    return sorted(p.name for p in Path(folder).glob("part-*"))


def test_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        BulkRun(tmp_path / "out", [str(tmp_path / "in")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        BulkRun(tmp_path / "out", [str(tmp_path / "nowhere")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        list(read_shards(tmp_path / "out"))
    assert list(list_images([])) == []


def test_what_a_list_finds(tmp_path):
    write(tmp_path / "b", 2)
    write(tmp_path / "b" / "a", 1)
    (tmp_path / "b" / "note.md").touch()
    (tmp_path / "b" / ".hidden.png").touch()
    os.symlink(tmp_path / "b", tmp_path / "b" / "a" / "back")
    folder = [f"{tmp_path}/b/000.png", f"{tmp_path}/b/001.png", f"{tmp_path}/b/a/000.png"]
    assert [path for [path] in list_images([f"{tmp_path}/b"])] == folder
    (tmp_path / "list.txt").write_text(f"{tmp_path}/b\n\ns3://bucket/x.jpg\n{tmp_path}/b/001.png\n")
    found = [path for [path] in list_images([f"{tmp_path}/list.txt", f"{tmp_path}/b/000.png"])]
    assert found == [*folder, "s3://bucket/x.jpg", folder[1], folder[0]]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_all_images_in_order(tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    run = BulkRun(tmp_path / "out", [str(write(tmp_path / "in", 7))], shard_size=3, format=format)
    assert (run.num_images, run.num_shards, run.predict(predictor())) == (7, 3, 7)
    assert parts(tmp_path / "out") == [f"part-00000{i}.{format}" for i in range(3)]
    rows = list(read_shards(tmp_path / "out"))
    assert [row["index"] for row in rows] == list(range(7)) and classes(tmp_path / "out") == list(range(7))
    assert rows[2]["file"] == str(tmp_path / "in" / "002.png")
    thing = rows[0]["objects"][0]
    assert (thing["box_xyxy"], thing["score"], thing["area"], thing["mask"]["size"]) == (
        [0.5, 1, 3, 4],
        0.75,
        30,
        [5, 6],
    )
    assert BulkRun(tmp_path / "out", [], shard_size=3, format=format, resume=True).predict(predictor()) == 0


def test_rows_are_those_of_a_result(tmp_path):
    folder = write(tmp_path / "in", 2)
    BulkRun(tmp_path / "out", [str(folder)]).predict(predictor())
    expected = [json.loads(result.to_json()) for result in predictor()(str(folder))]
    for row, other in zip(read_shards(tmp_path / "out"), expected, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_archives(tmp_path):
    folder = write(tmp_path / "in", 3)
    (folder / "000.json").write_text("{}")
    (folder / "001.png").write_bytes(b"damaged")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "in")
    run = BulkRun(tmp_path / "out", [str(tmp_path / "a.tar")])
    assert run.predict(predictor()) == 3
    rows = {row["file"].rpartition("/")[2]: row for row in read_shards(tmp_path / "out")}
    assert rows["000.png"]["file"] == f"{tmp_path}/a.tar/in/000.png" and set(rows) == {"000.png", "001.png", "002.png"}
    assert rows["002.png"]["objects"][0]["class_id"] == 2
    assert "a.tar/in/001.png" in rows["001.png"]["error"] and rows["001.png"]["objects"] is None
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(folder, "in")
    with pytest.raises(ValueError, match=r"b.tar is not a readable tar archive without compression"):
        list(list_images([str(tmp_path / "b.tar")]))


def test_other_file_systems(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(stream, "PNG")
    fsspec.filesystem("memory").pipe("/bulk/a.png", stream.getvalue())
    BulkRun(tmp_path / "out", ["memory://bulk/a.png", "memory://bulk/b.png"]).predict(predictor())
    good, missing = read_shards(tmp_path / "out")
    assert good["file"] == "memory://bulk/a.png" and good["objects"][0]["class_id"] == 9
    assert missing["objects"] is None and missing["error"]


def test_confidence_and_report(tmp_path):
    seen = []
    run = BulkRun(tmp_path / "out", [str(write(tmp_path / "in", 3))])
    run.predict(predictor(), confidence=0.8, report=seen.append)
    assert [row["objects"] for row in read_shards(tmp_path / "out")] == [[]] * 3 and len(seen) == 3


def test_processes_share_the_shards(tmp_path):
    folder = str(write(tmp_path / "in", 7))
    first = BulkRun(tmp_path / "out", [folder], shard_size=2, rank=0, world_size=2, launch="a")
    second = BulkRun(tmp_path / "out", [folder], shard_size=2, rank=1, world_size=2, launch="a")
    assert (second.missing(), first.missing()) == ([1, 3], [0, 2])
    assert second.predict(predictor()) == 3
    assert classes(tmp_path / "out") == [2, 3, 6]
    three = [BulkRun(tmp_path / "out", [], shard_size=2, resume=True, rank=i, world_size=3) for i in range(3)]
    assert [run.missing() for run in three] == [[0], [], [2]]
    assert [run.predict(predictor()) for run in three] == [2, 0, 2]
    assert classes(tmp_path / "out") == list(range(7))


def test_what_cannot_go_on(tmp_path):
    folder = [str(write(tmp_path / "in", 3))]
    BulkRun(tmp_path / "out", folder, asked={"weights": "a.pth"}, launch="x")
    with pytest.raises(FileExistsError, match="--resume"):
        BulkRun(tmp_path / "out", folder, asked={"weights": "a.pth"})
    BulkRun(tmp_path / "out", folder, asked={"weights": "a.pth"}, launch="x")  # started again by its launcher
    for changed, what in (
        ({"asked": {"weights": "b.pth"}}, r"weights 'a\.pth' \(now 'b\.pth'\)\."),
        ({"asked": {"weights": "a.pth", "long": "x" * 300, "tile": 9}}, r"long None .*, tile None \(now 9\)\."),
        ({"shard_size": 3}, r"shard_size 500 \(now 3\)\."),
    ):
        with pytest.raises(ValueError, match=f"were made with {what} Go on with the same"):
            BulkRun(tmp_path / "out", folder, **{"asked": {"weights": "a.pth"}, "resume": True, **changed})
    with pytest.raises(TimeoutError, match="rank 0 has not written"):
        BulkRun(tmp_path / "other", folder, rank=1, world_size=2, wait=0.0)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run.json is not of a run with shards"):
        BulkRun(tmp_path / "else", folder, resume=True)


@pytest.mark.parametrize("options", [{"shard_size": 0}, {"format": "csv"}, {"rank": 1}, {"rank": -1}])
def test_impossible_options(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BulkRun(tmp_path / "out", [], **options)


def test_an_error_of_the_model_leaves_nothing_half_written(tmp_path):
    class Failing(Model):
        def forward(self, inputs):
            if int(inputs[0]["image"][0, 0, 0]) == 4:
                raise RuntimeError("out of memory")
            return super().forward(inputs)

    failing = predictor(batch_size=1)
    failing.model = Failing().eval()
    run = BulkRun(tmp_path / "out", [str(write(tmp_path / "in", 6))], shard_size=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.predict(failing)
    assert sorted(os.listdir(tmp_path / "out")) == ["inputs.jsonl", "part-000000.jsonl", "run.json"]
    assert run.predict(predictor()) == 3 and classes(tmp_path / "out") == list(range(6))


def work(folder, source, rank):
    torch.set_num_threads(1)
    BulkRun(folder, [source], shard_size=4, resume=True, rank=rank, world_size=2).predict(predictor(seconds=0.005))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_any_moment(tmp_path):
    """Two processes are killed again and again; in the end each image has one row."""
    source, out = str(write(tmp_path / "in", 60)), tmp_path / "out"
    BulkRun(out, [source], shard_size=4)
    generator = np.random.default_rng(0)
    context = multiprocessing.get_context("fork")
    for attempt in range(100):
        processes = [context.Process(target=work, args=(out, source, rank)) for rank in range(2)]
        for process in processes:
            process.start()
        if attempt < 6:
            time.sleep(float(generator.uniform(0.02, 0.25)))
            for process in processes:
                process.kill()
        for process in processes:
            process.join()
        if all(process.exitcode == 0 for process in processes):
            break
        rows = [row["index"] for row in read_shards(out)]
        assert len(rows) == len(set(rows))
    assert classes(out) == list(range(60)) and len(parts(out)) == 15
    assert sorted(os.listdir(out)) == sorted(["inputs.jsonl", "run.json", *parts(out)])


def test_memory_does_not_grow_with_the_list(tmp_path):
    """A list of a hundred thousand inputs, of which one shard is missing."""
    source = str(write(tmp_path / "in", 1) / "000.png")
    (tmp_path / "list.txt").write_text(f"{source}\n" * 100_000)
    run = BulkRun(tmp_path / "out", [str(tmp_path / "list.txt")], shard_size=10)
    assert run.num_images == 100_000
    for number in range(run.num_shards - 1):
        run.path_of(number).touch()
    small = predictor()
    tracemalloc.start()
    assert run.predict(small) == 10
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6  # the list itself has 5 MB


# ------------------------------------------------------------------------------------------------------ other engines


def test_results_of_another_engine(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither run.json nor files .jsonl, .json, .parquet"):
        list(read_shards(tmp_path))
    (tmp_path / "x_000001.json").write_text('{"file": "b.png", "objects": []}\n')
    (tmp_path / "x_000000.jsonl").write_text('{"file": "a.png", "objects": []}\n{"file": "c.png", "error": "no"}\n')
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".x.json").write_text("{")
    assert [row["file"] for row in read_shards(tmp_path)] == ["a.png", "c.png", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "line 1 is not an object of JSON"), ("[1]", "but list"), ('{"path": 1}', "'file', got path")],
)
def test_files_of_something_else(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_shards(tmp_path))


@pytest.mark.parametrize("as_table", [False, True])
def test_batches_give_the_rows_of_a_run(tmp_path, as_table):
    """Written as Parquet, as an engine does, they are read as the shards of a run on the same images."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    folder = write(tmp_path / "in", 4)
    (folder / "002.png").write_bytes(b"damaged")
    Image.new("L", (3, 7), 3).save(folder / "003.png")
    BulkRun(tmp_path / "run", [str(folder)]).predict(predictor())
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    predict = Predictor.for_batches(Model().eval(), as_table=as_table, mapper=mapper, optimize=False, batch_size=2)
    paths = sorted(map(str, folder.iterdir()))
    (tmp_path / "engine").mkdir()
    for start in range(0, 4, 2):
        found = predict({"path": np.array(paths[start : start + 2]), "id": np.arange(start, start + 2)})
        if not as_table:
            assert list(found)[:2] == ["path", "id"] and list(found["id"]) == [start, start + 1]
            found = pa.table({name: pa.array(list(column)) for name, column in found.items()})
        pa.parquet.write_table(found, tmp_path / "engine" / f"{start}.parquet")
    expected = [{k: v for k, v in row.items() if k in found.column_names} for row in read_shards(tmp_path / "run")]
    rows = list(read_shards(tmp_path / "engine"))
    assert [row["error"] is None for row in rows] == [True, True, False, True] and len(expected) == 4
    for row, other in zip(rows, expected, strict=True):
        things = [{k: v for k, v in thing.items() if v is not None} for thing in row.pop("objects") or []]
        assert things == (other.pop("objects") or [])
        assert {**other, "seconds": 0} == {k: v for k, v in {**row, "seconds": 0}.items() if k in other}


def test_batches_of_arrays(tmp_path, tiny_cfg, tiny_images):
    predict = Predictor.for_batches(tiny_cfg.MODEL.WEIGHTS, device="cpu", batch_size=2, score_threshold=0.0)
    column = np.empty(3, dtype=object)
    column[0], column[1] = tiny_images[0][:, :, ::-1], tiny_images[1][:, :, ::-1]  # RGB; the last is None
    found = predict({"path": np.array(["a.jpg", "b.jpg", "c.jpg"]), "image": column})
    assert list(found["file"]) == ["a.jpg", "b.jpg", "c.jpg"] and "image" not in found
    assert [error is None for error in found["error"]] == [True, True, False] and "c.jpg" not in found["error"][0:2]
    other = Predictor(tiny_cfg, device="cpu", batch_size=2, mask_format="rle", score_threshold=0.0)
    for i, result in enumerate(other(tiny_images[:2])):
        assert found["objects"][i] == result.to_dict()["objects"] and len(result) > 0
    empty = predict({"path": np.array([], dtype=str), "image": np.zeros((0, 60, 80, 3), np.uint8)})
    assert all(len(values) == 0 for values in empty.values()) and "objects" in empty
    scaled = Predictor.for_batches(tiny_cfg.MODEL.WEIGHTS, tiny_cfg, device="cpu", scale=255, score_threshold=0.0)
    again = scaled({"image": np.stack([column[0] / 255.0])})
    assert again["objects"][0] == found["objects"][0]
