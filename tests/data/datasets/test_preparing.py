"""What the scripts in ``datasets/`` make of annotations, by hand and against COCO's own second form of them."""

import argparse
import copy
import json

import numpy as np
import pytest
from PIL import Image

from detectron2.data.datasets import preparing
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.preparing import COCO_ID_OF_SYNSET

OPTIONS = argparse.Namespace(processes=1, skip_existing=False)


def rgb(segments):
    """Ids of segments as the colours of COCO's panoptic format."""
    segments = np.asarray(segments)
    return np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1).astype(np.uint8)


class TestStuffLabels:
    def test_empty(self):
        assert preparing.stuff_labels(rgb(np.zeros((0, 4), int)), {}).shape == (0, 4)
        assert preparing.stuff_labels(rgb(np.zeros((2, 4), int)), {}).tolist() == [[255] * 4] * 2

    def test_by_hand(self):
        segments = [[0, 7, 7, 70000], [300, 300, 1, 0]]
        # 7 and 70000 are a person and a toothbrush, 300 is banner, the first stuff, 1 is rug-merged, the last
        labels = preparing.stuff_labels(rgb(segments), {7: 1, 70000: 90, 300: 92, 1: 200})
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[255, 0, 0, 0], [1, 1, 53, 255]]

    @pytest.mark.parametrize(
        ("pixels", "categories", "message"),
        [
            (np.zeros((2, 2), np.uint8), {}, r"three channels.*\(2, 2\)"),
            (np.zeros((2, 2, 3), np.uint16), {}, "uint16"),
            (rgb([[1]]), {1: 12}, "categories 12,"),
        ],
    )
    def test_malformed(self, pixels, categories, message):
        with pytest.raises(ValueError, match=message):
            preparing.stuff_labels(pixels, categories)

    def test_against_the_two_channel_form(self, shared_dir, tmp_path):
        """COCO gives the sample in another form, too, whose red channel is the category of each pixel."""
        root = shared_dir / "data" / "coco_panoptic_sample" / "sample_data"
        tasks = preparing.separated_stuff_tasks(
            str(root / "panoptic_examples.json"), str(root / "panoptic_examples"), str(tmp_path)
        )
        assert len(tasks) == 2
        preparing.convert_files(preparing.write_stuff_labels, tasks, "", OPTIONS)
        raw = json.loads((root / "panoptic_examples.json").read_text())
        things = {c["id"] for c in raw["categories"] if c["isthing"]}
        stuff = sorted(c["id"] for c in raw["categories"] if not c["isthing"])
        for path, output, _ in tasks:
            with Image.open(path.replace("panoptic_examples", "panoptic_examples_2ch_format")) as image:
                category = np.asarray(image)[..., 0]
            expected = np.full(category.shape, 255)
            expected[np.isin(category, sorted(things))] = 0
            for label, c in enumerate(stuff, start=1):
                expected[category == c] = label
            with Image.open(output) as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), expected)


def lvis(**changes):
    categories = [{"id": i, "synset": s, "frequency": "f"} for i, s in enumerate(sorted(COCO_ID_OF_SYNSET), start=100)]
    categories.insert(0, {"id": 1, "synset": "aerosol.n.02", "frequency": "c"})
    return {"info": {}, "images": [], "annotations": [], "categories": categories, **changes}


class TestCocofied:
    def test_synsets_are_of_the_80_categories(self):
        things = _get_builtin_metadata("coco")["thing_dataset_id_to_contiguous_id"]
        assert sorted(COCO_ID_OF_SYNSET.values()) == sorted(things)

    def test_no_annotations(self):
        result = preparing.cocofied(lvis())
        assert result["images"] == result["annotations"] == []
        assert [c["id"] for c in result["categories"]] == sorted(COCO_ID_OF_SYNSET.values())
        assert {"id": 1, "synset": "person.n.01", "frequency": "f"} in result["categories"]
        assert "annotations" not in preparing.cocofied({k: v for k, v in lvis().items() if k != "annotations"})

    def test_by_hand(self):
        ids = {c["synset"]: c["id"] for c in lvis()["categories"]}
        person, cow = ids["person.n.01"], ids["beef.n.01"]
        content = lvis(
            images=[{"id": 5, "neg_category_ids": [cow, 1], "not_exhaustive_category_ids": [person]}, {"id": 6}],
            annotations=[
                {"id": 1, "image_id": 5, "category_id": person},
                {"id": 2, "image_id": 5, "category_id": 1},
                {"id": 3, "image_id": 6, "category_id": cow},
            ],
        )
        before = copy.deepcopy(content)
        result = preparing.cocofied(content)
        assert content == before
        assert result["images"] == [
            {"id": 5, "neg_category_ids": [21], "not_exhaustive_category_ids": [1]},
            {"id": 6},
        ]
        assert result["annotations"] == [
            {"id": 1, "image_id": 5, "category_id": 1},
            {"id": 3, "image_id": 6, "category_id": 21},
        ]

    def test_other_categories(self):
        with pytest.raises(ValueError, match=r"80 of COCO's.*'airplane\.n\.01'"):
            preparing.cocofied(lvis(categories=[{"id": 1, "name": "person"}]))


class TestAde20kLabels:
    def test_by_hand(self):
        assert preparing.ade20k_labels(np.zeros((0, 3), np.uint8)).shape == (0, 3)
        labels = preparing.ade20k_labels(np.array([[0, 1, 150]], np.uint8))
        assert labels.dtype == np.uint8 and labels.tolist() == [[255, 0, 149]]

    @pytest.mark.parametrize("raw", [np.full((1, 1), 151, np.uint8), rgb([[1]]), np.ones((1, 1), np.uint16)])
    def test_malformed(self, raw):
        with pytest.raises(ValueError, match=r"the value 151|one channel of 8 bits"):
            preparing.ade20k_labels(raw)


class TestSubset:
    CONTENT = {
        "info": {},
        "images": [{"id": i} for i in (9, 3, 5)],
        "annotations": [{"id": i, "image_id": i % 2 * 6 + 3} for i in range(4)],
    }

    def test_none(self):
        assert preparing.subset({"images": []}, 5) == {"images": []}
        assert preparing.subset(self.CONTENT, 0) == {"info": {}, "images": [], "annotations": []}

    def test_first(self):
        result = preparing.subset(self.CONTENT, 2)
        assert result == {
            "info": {},
            "images": [{"id": 3}, {"id": 5}],
            "annotations": [{"id": 0, "image_id": 3}, {"id": 2, "image_id": 3}],
        }

    def test_random(self):
        images = {"images": [{"id": i} for i in range(100)]}
        a, b, c = (preparing.subset(images, 10, seed=seed)["images"] for seed in (0, 0, 1))
        assert a == b != c and len(a) == 10
        assert preparing.subset(images, 1000, seed=0) == images


class TestFiles:
    @pytest.fixture
    def tasks(self, tmp_path):
        tasks = []
        for i in range(3):
            Image.fromarray(np.full((2, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
            tasks.append((str(tmp_path / f"{i}.png"), str(tmp_path / "out" / f"{i}.png")))
        return tasks

    @pytest.mark.parametrize("processes", [1, 2])
    def test_all_are_converted(self, tasks, processes, tmp_path):
        options = argparse.Namespace(processes=processes, skip_existing=False)
        preparing.convert_files(preparing.write_ade20k_labels, [], "", options)
        preparing.convert_files(preparing.write_ade20k_labels, tasks, "", options)
        for i, (_, output) in enumerate(tasks):
            with Image.open(output) as image:
                assert np.asarray(image).tolist() == [[(i - 1) % 256] * 3] * 2
        assert len(list((tmp_path / "out").iterdir())) == 3  # and nothing temporary

    def test_existing_ones_are_kept(self, tasks, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "1.png").write_text("kept")
        options = argparse.Namespace(processes=1, skip_existing=True)
        preparing.convert_files(preparing.write_ade20k_labels, tasks, "", options)
        assert (tmp_path / "out" / "1.png").read_text() == "kept" and (tmp_path / "out" / "2.png").is_file()

    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_bad_file_is_named_and_nothing_is_written_for_it(self, tasks, processes, tmp_path):
        Image.new("RGB", (3, 2)).save(tasks[1][0])
        options = argparse.Namespace(processes=processes, skip_existing=False)
        with pytest.raises(ValueError, match=r"1\.png': an annotation is one channel"):
            preparing.convert_files(preparing.write_ade20k_labels, tasks, "", options)
        assert not (tmp_path / "out" / "1.png").exists()
        with pytest.raises(FileNotFoundError):
            preparing.write_ade20k_labels((str(tmp_path / "none.png"), str(tmp_path / "x.png")))

    def test_missing_key(self, tmp_path):
        (tmp_path / "a.json").write_text('{"images": []}')
        assert preparing.read_content(str(tmp_path / "a.json"), "images") == {"images": []}
        with pytest.raises(ValueError, match=r"a\.json: needs 'annotations'; it has: 'images'"):
            preparing.separated_stuff_tasks(str(tmp_path / "a.json"), "png", "out")
        entries = {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1}]}]}
        (tmp_path / "a.json").write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=r"segments_info\[0\]: needs 'id' and 'category_id'"):
            preparing.separated_stuff_tasks(str(tmp_path / "a.json"), "png", "out")
        (tmp_path / "a.json").write_text('{"images": [{"file_name": "a.jpg"}]}')
        with pytest.raises(ValueError, match=r"images\[0\]: needs 'id'; it has: 'file_name'"):
            preparing.read_content(str(tmp_path / "a.json"), "images")

    def test_missing_folder(self, tmp_path):
        (tmp_path / "a.json").write_text('{"annotations": []}')
        with pytest.raises(FileNotFoundError, match="archive of panoptic annotations"):
            preparing.separated_stuff_tasks(str(tmp_path / "a.json"), str(tmp_path / "png"), "out")


def test_errors_end_a_script_with_one_line(capsys):
    def main(options):
        yield f"root {options.root}"
        raise ValueError("this is wrong")

    with pytest.raises(SystemExit) as e:
        preparing.run_script(main, preparing.script_parser("Do it."), ["--root", "/data"])
    out, err = capsys.readouterr()
    assert e.value.code == 1 and out == "root /data\n" and err.endswith("error: this is wrong\n")
