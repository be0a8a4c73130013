"""Image files that are missing, damaged or of another size are found."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectron2.data.detection_utils import read_image
from tests.data.checks.helpers import check, findings, record


class TestFiles:
    @pytest.fixture
    def images(self, tmp_path):
        def make(*sizes_wh):
            records = []
            for i, size in enumerate(sizes_wh):
                path = tmp_path / f"{i}.png"
                Image.new("L", size).save(path)
                records.append(record(file_name=str(path), width=30, height=20))
            return records

        return make

    def test_good(self, images):
        check(*images((30, 20), (30, 20)), check_files=True)

    def test_none(self):
        (text,) = findings(check_files=True)
        assert "it is empty" in text

    def test_missing(self, images, tmp_path):
        (text,) = findings(*images((30, 20)), record(file_name=str(tmp_path / "no.jpg")), check_files=True)
        assert "1 of 2 checked image files cannot be found" in text and "no.jpg' (image_id 7)" in text

    def test_other_size(self, images):
        (text,) = findings(*images((30, 20), (20, 30)), check_files=True)
        assert "1.png' (image_id 7) is 20 x 30 (width x height), said to be 30 x 20" in text

    def test_size_not_said(self, images):
        (one,) = images((5, 5))
        del one["width"]
        check(one, check_files=True)

    def test_turned_by_exif(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for extension in ("jpg", "png", "webp", "tif"):
            path = tmp_path / f"a.{extension}"
            Image.new("RGB", (20, 30)).save(path, exif=exif)
            check(record(file_name=str(path)), check_files=True)
            if extension != "tif":  # Pillow turns these on its own
                assert read_image(str(path)).shape[:2] == (20, 30)

    def test_not_an_image(self, tmp_path):
        for name in ("a.jpg", "a.npy", "a.raw"):
            (tmp_path / name).write_text("x")
        check(record(file_name=str(tmp_path / "a.raw")), check_files=True)  # for a mapper that knows it
        for name in ("a.jpg", "a.npy"):
            (text,) = findings(record(file_name=str(tmp_path / name)), check_files=True)
            assert "cannot be read as images" in text
            assert ("(not an image that Pillow can read)" in text) == (name == "a.jpg") and "<_io." not in text

    @pytest.mark.parametrize("name", [None, 5])
    def test_no_name(self, name):
        (text,) = findings(record(file_name=name), check_files=True)
        assert text.startswith(f"1 image has no 'file_name': image id 7 (file_name {name!r})") or name == 5
        assert "1 image has no 'file_name'" in text and "mapper of your own" in text
        check(record(file_name=name), check_files=True, raise_on_error=False)

    def test_paths(self, images):
        (one,) = images((30, 20))
        check({**one, "file_name": Path(one["file_name"])}, check_files=True)
        (text,) = findings({**one, "file_name": Path("no.jpg")}, check_files=True)
        assert "'no.jpg' (image_id 7)" in text and "the third word of --coco" in text

    @pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "webp", "tif"])
    def test_whole(self, tmp_path, extension):
        noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
        path = tmp_path / f"a.{extension}"
        Image.fromarray(noise).save(path)
        content = path.read_bytes()
        path.write_bytes(content + bytes(9000))  # some programs write notes behind the end
        check(record(file_name=str(path)), check_files=True)
        path.write_bytes(content[: len(content) * 3 // 4])
        (text,) = findings(record(file_name=str(path)), check_files=True)
        assert "1 of 1 checked image files cannot be read as images" in text and str(path) in text

    def test_bad_files_that_the_loader_skips(self, images, tmp_path, warnings):
        records = [*images((30, 20), (20, 30)), record(file_name=str(tmp_path / "no.jpg"))]
        (text,) = findings(*records, check_files=True, skips_bad_images=True)
        assert "have another size" in text
        check(records[0], records[2], check_files=True, skips_bad_images=True)
        assert "1 of 2 checked image files cannot be found" in warnings()[-1]

    @pytest.mark.parametrize("save", [np.save, np.savez], ids=["npy", "npz"])
    def test_arrays(self, tmp_path, save):
        path = tmp_path / ("a.npy" if save is np.save else "a.npz")
        save(path, np.zeros((20, 30, 5), np.uint16))
        check(record(file_name=str(path)), check_files=True)
        (text,) = findings(record(file_name=str(path), height=30, width=20), check_files=True)
        assert "is 30 x 20 (width x height), said to be 20 x 30" in text

    def test_remote_names_are_left_alone(self):
        check(record(file_name="s3://bucket/a.jpg"), check_files=True)

    def test_evenly_spaced_choice(self, images, tmp_path):
        records = images(*[(30, 20)] * 9)
        records[4] = record(file_name=str(tmp_path / "no.jpg"))
        check(*records, check_files=True, max_files=2)  # the first and the last
        (text,) = findings(*records, check_files=True, max_files=3)
        assert text.startswith("1 of 3 checked")

    def test_many_are_counted(self, tmp_path):
        (text,) = findings(*[record(file_name=str(tmp_path / f"{i}.jpg")) for i in range(50)], check_files=True)
        assert text.startswith("50 of 50") and "and 47 more" in text
