"""Files in archives: found, read by their place, and refused where the place is not theirs."""

import io
import os
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from detectron2.data.checks.files import file_problems
from detectron2.data.formats.reading import image_size_hw
from detectron2.data.images import read_image
from detectron2.data.tar_members import TarMember, is_remote, members_of, read_range
from detectron2.utils.file_io import PathManager


def png(size_wh=(6, 5), color=(10, 20, 30)):
    file = io.BytesIO()
    Image.new("RGB", size_wh, color).save(file, "PNG")
    return file.getvalue()


def write(path, files, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def test_empty_archive(tmp_path):
    assert list(members_of(write(tmp_path / "a.tar", {}))) == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_file_is_found_and_read(tmp_path, format):
    files = {"a.txt": b"first", "empty": b"", "./b/c.png": png(), "long/" + "n" * 90 + ".bin": bytes(range(256)) * 5}
    if format != tarfile.USTAR_FORMAT:
        files |= {"m" * 150: b"m", "\u00e4\u4e2d.png": png((2, 3))}
    members = list(members_of(write(tmp_path / "a.tar", files, format=format)))
    assert {m.name: m.read() for m in members} == files
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert [m.offset for m in members] == [info.offset_data for info in archive]
    for member in members:
        assert TarMember.parse(member.address) == member
        with PathManager.open(member.address, "rb") as file:
            assert file.read() == files[member.name]


def test_folders_and_links_are_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"a")
    os.symlink("a", tmp_path / "in" / "link")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "in", "in")
    assert [m.name for m in members_of(str(tmp_path / "a.tar"))] == ["in/a"]


@pytest.mark.parametrize(
    "text", ["a.png", "shard://a.tar", "shard://a.tar#5+6", "shard://a.tar#-5+6/a", "shard://#1+2/a"]
)
def test_not_an_address(text):
    with pytest.raises(ValueError, match=r"is not the address of a file in an archive"):
        TarMember.parse(text)


def test_what_is_remote():
    assert not is_remote("a/b.tar") and not is_remote("shard:///a/b.tar#512+1/a")
    assert is_remote("s3://a/b.tar") and is_remote("shard://s3://a/b.tar#512+1/a")


def test_images(tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(24, dtype=np.uint16).reshape(4, 3, 2))
    files = {"a.png": png(), "b.npy": array.getvalue(), "c.png": png((60, 50))[:60]}
    image, numbers, cut_off = [m.address for m in members_of(write(tmp_path / "a.tar", files))]
    assert read_image(image, "BGR").shape == (5, 6, 3) and read_image(image, "BGR")[0, 0].tolist() == [30, 20, 10]
    assert image_size_hw(image) == (5, 6) and image_size_hw(numbers) == (4, 3)
    assert read_image(numbers).tolist() == np.arange(24).reshape(4, 3, 2).tolist()
    assert PathManager.isfile(image) and not PathManager.isfile(image.replace("a.tar", "b.tar"))
    assert not PathManager.isdir(image)
    names = (image, cut_off, image.replace("a.tar", "b.tar"))
    records = [{"file_name": name, "height": 5, "width": 6} for name in names]
    problems = file_problems([*records, {**records[0], "width": 7}], range(4))
    assert {n: kind for n, (kind, _) in problems.items()} == {1: "unreadable", 2: "missing", 3: "size"}
    with pytest.raises(ValueError, match=r"can only be read"):
        PathManager.open(image, "wb")
    with pytest.raises(ValueError, match=r"read it with PathManager\.open"):
        PathManager.get_local_path(image)
    with pytest.raises(FileNotFoundError, match=r"image file not found: .*b.tar"):
        read_image(image.replace("a.tar", "b.tar"))


class TestWhatIsNotThere:
    @pytest.fixture
    def member(self, tmp_path):
        path = write(tmp_path / "a.tar", {"a.png": png(), "b.png": png((9, 9))}, format=tarfile.USTAR_FORMAT)
        return list(members_of(path))[1]

    def test_truncated(self, member):
        os.truncate(member.archive, member.offset + member.length - 1)
        with pytest.raises(OSError, match=r"a.tar ends before this file does, at byte \d+: it was not copied comp"):
            member.read()
        with pytest.raises(OSError, match=r"cannot read the image 'shard://.*/b.png': .*a.tar ends before"):
            read_image(member.address)

    @pytest.mark.parametrize(
        "change", [{"name": "c.png"}, {"length": 3}, {"offset": 1000}, {"offset": 512}, {"offset": 0}, {"offset": 3}]
    )
    def test_another_file(self, member, change):
        with pytest.raises(OSError, match=r"the index was written for another archive"):
            member._replace(**change).read()

    def test_compressed(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w:gz"):
            pass
        with pytest.raises(ValueError, match=r"a.tar is not a readable tar archive without compression"):
            list(members_of(str(tmp_path / "a.tar")))


def test_at_an_address(tmp_path):
    path = write(tmp_path / "a.tar", {"a.png": png()})
    store = fsspec.filesystem("memory")
    store.pipe("/tar_members/a.tar", (tmp_path / "a.tar").read_bytes())
    (member,) = members_of(path)
    try:
        for prefix in ("memory://", "simplecache::memory://"):
            address = member._replace(archive=f"{prefix}tar_members/a.tar").address
            assert read_image(address).shape == (5, 6, 3)
        assert read_range("memory://tar_members/a.tar", 512, 4) == b"\x89PNG"
        with pytest.raises(FileNotFoundError):
            read_image(address.replace("a.tar", "b.tar"))
        with pytest.raises(OSError, match=r"ends before this file does"):
            member._replace(archive="memory://tar_members/a.tar", length=10**6).read()
    finally:
        store.rm("/tar_members", recursive=True)


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("", False),
        ("s3://bucket/a.png", True),
        ("simplecache::s3://bucket/a.tar", True),
        ("shard://s3://bucket/a.tar#512+9/a.png", True),
        ("shard://a.tar#512+9/a.png", False),
        ("/data/http://host/a.png", False),
        ("images/http://host/a.png", False),
    ],
)
def test_addresses_begin_with_their_scheme(path, remote):
    assert is_remote(path) == remote
