"""Tar shards: what is written is what was there, for other readers too; and damage is told by its cause."""

import gzip
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.data.formats.run_lengths import decode_mask
from detectron2.data.formats.tar_shards import is_sharded, read_index, write_shards
from detectron2.data.images import read_image
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

METADATA = {
    "thing_classes": ["cat", "dog"],
    "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1},
    "keypoint_names": ["left", "right"],
    "keypoint_flip_map": [("left", "right")],
    "keypoint_connection_rules": [("left", "right", (1, 2, 3))],
    "evaluator_type": "coco",
    "json_file": "/elsewhere.json",
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    file = generate_shapes_dataset(folder, 7, size_hw=(32, 48), max_objects=3, seed=1)
    return load_coco_json(file, folder / "images")


@pytest.fixture
def shards(records, tmp_path):
    write_shards(records, METADATA, tmp_path / "tars", shard_size=3)
    return tmp_path / "tars"


def loaded(folder):
    index = read_index(folder)
    index.check_shards()
    return list(index.records())


def content_of(name):
    with PathManager.open(str(name), "rb") as file:
        return file.read()


def test_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"no images to write"):
        write_shards([], {}, tmp_path / "tars")
    with pytest.raises(FileNotFoundError, match=r"is written by `detectron2 data shard`"):
        read_index(tmp_path / "tars")
    assert list(tmp_path.iterdir()) == [] and not is_sharded(tmp_path)


@pytest.mark.parametrize("seed", [0, None])
def test_records_are_as_before(records, tmp_path, seed):
    index = write_shards(records, METADATA, tmp_path / "tars", shard_size=3, seed=seed)
    assert [(s.file, s.samples) for s in index.shards] == [
        ("tars-000000.tar", 3),
        ("tars-000001.tar", 3),
        ("tars-000002.tar", 1),
    ]
    assert index == read_index(tmp_path / "tars") and is_sharded(tmp_path / "tars") and index.num_images == 7
    again = loaded(tmp_path / "tars")
    assert ([r["image_id"] for r in again] == [r["image_id"] for r in records]) == (seed is None)
    for record, old in zip(sorted(again, key=lambda r: r["image_id"]), records, strict=True):
        assert {**record, "file_name": old["file_name"]} == old
        assert content_of(record["file_name"]) == Path(old["file_name"]).read_bytes()
        assert all(type(a["bbox_mode"]) is BoxMode for a in record["annotations"])


def test_metadata_go_along(shards):
    assert read_index(shards).metadata == {k: v for k, v in METADATA.items() if k != "json_file"}


def test_layout_of_webdataset(shards, records):
    """Groups of files that have the same name up to the first dot stand together."""
    by_id = {r["image_id"]: r for r in records}
    seen = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path, "r:") as archive:
            for _, group in itertools.groupby(archive, lambda member: member.name.split(".", 1)[0]):
                files = {m.name.split(".", 1)[1]: archive.extractfile(m).read() for m in group}
                assert files.keys() == {"png", "json"}
                told = json.loads(files["json"])
                old = by_id[told["image_id"]]
                assert told["annotations"] == old["annotations"] and (told["height"], told["width"]) == (32, 48)
                assert files["png"] == Path(old["file_name"]).read_bytes()
                seen.append(told["image_id"])
    assert sorted(seen) == sorted(by_id)


def test_all_kinds_of_labels(tmp_path):
    for name in ("a.b.jpg", "labels.png", "ids.png"):
        Image.new("RGB" if name != "labels.png" else "L", (6, 5)).save(tmp_path / name)
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    annotation = {
        "bbox": np.array([1.5, 2, 3, 4]),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": np.int64(1),
        "segmentation": mask,
        "keypoints": np.float32([0.5, 1.5, 2]),
    }
    record = {
        "file_name": tmp_path / "a.b.jpg",
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [{"id": 5, "category_id": 1, "isthing": True}],
        "image_id": "a",
        "annotations": [annotation],
        "time": ("noon", 3),
    }
    write_shards([record], {}, tmp_path / "tars")
    (again,) = loaded(tmp_path / "tars")
    with tarfile.open(tmp_path / "tars" / "tars-000000.tar") as archive:
        assert archive.getnames() == ["a_b.jpg", "a_b.sem_seg.png", "a_b.pan_seg.png", "a_b.json"]
    for key in ("file_name", "sem_seg_file_name", "pan_seg_file_name"):
        assert content_of(again[key]) == content_of(record[key])
    assert read_image(again["sem_seg_file_name"], "L").shape == (5, 6, 1)
    assert (again["height"], again["width"]) == (5, 6)  # read, where they are not told
    assert again["segments_info"] == record["segments_info"] and again["time"] == ["noon", 3]
    (told,) = again["annotations"]
    assert told["bbox"] == [1.5, 2, 3, 4] and told["bbox_mode"] is BoxMode.XYXY_ABS and told["category_id"] == 1
    assert (decode_mask(told["segmentation"]) == mask).all() and told["keypoints"] == [0.5, 1.5, 2]


def test_names_are_safe_and_differ(tmp_path):
    (tmp_path / "other").mkdir()
    names = ["a.png", "other/a.png", "\u00e4 b;.PNG", "n" * 200 + ".png", "x.p\u00e4g"]
    for name in names:
        Image.new("L", (2, 2)).save(tmp_path / name, "PNG")
    write_shards([{"file_name": str(tmp_path / n)} for n in names], {}, tmp_path / "t ars.v2", seed=None)
    with tarfile.open(tmp_path / "t ars.v2" / "t_ars_v2-000000.tar") as archive:
        found = [n for n in archive.getnames() if not n.endswith(".json")]
    assert found == ["a.png", "a_1.png", "__b_.png", "n" * 80 + ".png", "x.img"]
    assert [read_image(r["file_name"]).shape for r in loaded(tmp_path / "t ars.v2")] == [(2, 2)] * 5


def test_shards_of_some_bytes(records, tmp_path):
    index = write_shards(records, {}, tmp_path / "tars", shard_bytes=30_000)
    assert all(s.bytes <= 30_000 for s in index.shards) and 1 < len(index.shards) < 7
    assert [s.bytes for s in index.shards] == [(tmp_path / "tars" / s.file).stat().st_size for s in index.shards]
    assert len(write_shards(records, {}, tmp_path / "each", shard_bytes=1).shards) == 7
    for options in ({"shard_size": 0}, {"shard_bytes": -1}):
        with pytest.raises(ValueError, match=r"must be at least 1"):
            write_shards(records, {}, tmp_path / "none", **options)


class TestNothingIsLeft:
    def test_of_what_fails(self, records, tmp_path):
        Path(tmp_path, "empty.png").touch()
        for wrong, error, message in (
            ({"file_name": str(tmp_path / "no.png")}, FileNotFoundError, "no.png"),
            ({"file_name": str(tmp_path / "empty.png")}, ValueError, "is empty"),
            (
                {"file_name": records[0]["file_name"], "other": object()},
                TypeError,
                "'other' of the image .* is a object",
            ),
            ({}, ValueError, r"Image 7 \(image id None\) has no 'file_name'"),
        ):
            with pytest.raises(error, match=message):
                write_shards([*records, wrong], {}, tmp_path / "tars", seed=None)
            assert [p.name for p in tmp_path.iterdir()] == ["empty.png"]

    def test_over_what_is_there(self, shards, records):
        before = {p.name: p.read_bytes() for p in shards.iterdir()}
        with pytest.raises(FileExistsError, match=r"exists already"):
            write_shards(records, {}, shards)
        assert {p.name: p.read_bytes() for p in shards.iterdir()} == before


class TestDamage:
    def test_shard_that_is_missing(self, shards):
        (shards / "tars-000001.tar").unlink()
        with pytest.raises(FileNotFoundError, match=r"lacks 1 of 3 shards .* 'tars-000001.tar'. Copy the folder again"):
            loaded(shards)

    def test_shard_that_is_compressed(self, shards):
        path = shards / "tars-000001.tar"
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"There is tars-000001.tar.gz: .* unpack it"):
            loaded(shards)

    def test_shard_that_is_cut_off(self, shards):
        path = shards / "tars-000001.tar"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(
            ValueError, match=r"tars-000001.tar' has \d+ bytes, and index.json says \d+. It was not cop"
        ):
            loaded(shards)

    def test_index_of_another_folder(self, shards, records, tmp_path):
        write_shards(records[:3], {}, tmp_path / "other" / "tars", shard_size=1)
        shutil.copy(tmp_path / "other" / "tars" / "index.json", shards)
        with pytest.raises(ValueError, match=r"of different data sets"):
            loaded(shards)

    def test_samples_of_another_folder(self, shards, records, tmp_path):
        write_shards(records[:3], {}, tmp_path / "other" / "tars")
        shutil.copy(tmp_path / "other" / "tars" / "samples.jsonl", shards)
        with pytest.raises(ValueError, match=r"it has 3 lines, and index.json says 7"):
            loaded(shards)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2: this is not JSON"),
            ("", "line 2: this is not JSON"),
            ("3", "line 2: expected an object, not the number 3"),
            ('{"shard": 0}', "line 2: needs 'shard', 'files' and 'record'"),
            ('{"shard": 3, "files": {"file_name": ["a", 512, 1]}, "record": {}}', "line 2: 'shard' must be below 3"),
            ('{"shard": 0, "files": {}, "record": {}}', "line 2: 'record' and 'files' must be objects"),
            ('{"shard": 0, "files": {"file_name": ["../a", 512, 1]}, "record": {}}', "a name without folders, not"),
            ('{"shard": 0, "files": {"file_name": ["a", "512", 1]}, "record": {}}', "must be .name, offset, length."),
            ('{"shard": 0, "files": {"file_name": ["a", 512, 99999999]}, "record": {}}', "does not lie within"),
            ('{"shard": 0, "files": {"file_name": ["a", 512, -600]}, "record": {}}', "does not lie within"),
            (
                '{"shard": 0, "files": {"file_name": ["a", 512, 1]}, "record": {"annotations": [3]}}',
                "annotations cannot",
            ),
            (
                '{"shard": 0, "files": {"file_name": ["a", 512, 1]}, "record": {"annotations": [{"bbox_mode": 99}]}}',
                "annotations cannot",
            ),
        ],
    )
    def test_hostile_line(self, shards, line, message):
        lines = (shards / "samples.jsonl").read_text().splitlines()
        (shards / "samples.jsonl").write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match=rf"samples.jsonl: .*{message}"):
            loaded(shards)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "this is not a JSON file"),
            ("[]", "expected the index of tar shards"),
            ('{"images": []}', "expected the index of tar shards"),
            ({"shards": [{"file": "../../etc/passwd", "bytes": 1, "samples": 1}]}, "must be the name of an archive"),
            ({"shards": [{"file": "/etc/passwd", "bytes": 1, "samples": 1}]}, "must be the name of an archive"),
            ({"shards": [{"file": "s3://a", "bytes": 1, "samples": 1}]}, "must be the name of an archive"),
            ({"shards": [{"file": "a.tar", "bytes": "1", "samples": 1}]}, "must be whole numbers"),
            ({"shards": [{"file": "a.tar"}]}, "needs 'file', 'bytes' and 'samples'"),
            ({"shards": 3}, "expected a list"),
            ({"metadata": []}, "metadata: expected an object"),
        ],
    )
    def test_hostile_index(self, shards, content, message):
        if isinstance(content, dict):
            content = json.dumps({**json.loads((shards / "index.json").read_text()), **content})
        (shards / "index.json").write_text(content)
        with pytest.raises(ValueError, match=rf"index.json.*{message}"):
            loaded(shards)


@pytest.mark.parametrize("prefix", ["memory://", "simplecache::memory://"])
def test_at_an_address(shards, prefix):
    store = fsspec.filesystem("memory")
    for path in shards.iterdir():
        store.pipe(f"/test_tar_shards/{path.name}", path.read_bytes())
    try:
        folder = f"{prefix}test_tar_shards"
        remote = loaded(f"{folder}/")
        for there, here in zip(remote, loaded(shards), strict=True):
            assert there["file_name"] == here["file_name"].replace(str(shards), folder)
            assert (read_image(there["file_name"]) == read_image(here["file_name"])).all()
            assert there["annotations"] == here["annotations"]
        store.pipe("/test_tar_shards/tars-000000.tar", b"short")
        if prefix == "memory://":
            with pytest.raises(ValueError, match=r"has 5 bytes"):
                loaded(folder)
        store.rm("/test_tar_shards/tars-000000.tar")
        with pytest.raises(FileNotFoundError, match=r"lacks 1 of 3"):
            loaded(folder)
    finally:
        store.rm("/test_tar_shards", recursive=True)
