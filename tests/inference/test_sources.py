"""Inputs of every kind as one stream of frames: what each gives, what is said of bad ones, what is alive meanwhile."""

import gc
import http.server
import io
import os
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import detectron2.inference.sources as sources
from detectron2.data.images import read_image
from detectron2.inference.sources import Frame, Input, find_inputs, is_single, read_frames

RNG = np.random.default_rng(0)


def picture(path, size_hw=(6, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size_hw, 3)).astype(np.uint8)).save(path, **options)
    return path


def names(source, root, **options):
    return [os.path.relpath(f.path, root).replace(os.sep, "/") for f in read_frames(source, **options)]


def threads():
    return {t for t in threading.enumerate() if t.name.startswith(("read_frames", "read_ahead", "webcam"))}


def test_nothing_to_read(tmp_path):
    assert list(read_frames([])) == [] and list(read_frames(iter(()))) == [] and list(read_frames((), workers=0)) == []
    with pytest.raises(FileNotFoundError, match=r"No images \(\.jpg, .*\) in the folder '.*' and those in it\.$"):
        read_frames(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="It has 1 other files"):
        read_frames(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"match the pattern '.*\*'; 1 other files or folders"):
        read_frames(str(tmp_path / "*"))
    with pytest.raises(FileNotFoundError, match="is empty"):
        read_frames("")
    (empty,) = read_frames(b"")
    assert empty.image is None and isinstance(empty.error, OSError) and "'image 0': it is empty" in str(empty.error)
    (none,) = read_frames(np.zeros((0, 4, 3), np.uint8))
    assert isinstance(none.error, ValueError) and none.name == "image 0"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_file_in_all_the_ways_to_give_it(tmp_path, workers):
    path = picture(tmp_path / "a.png")
    rgb = read_image(path, "RGB")
    with open(path, "rb") as file:
        given = [str(path), path, path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), file]
        with Image.open(path) as opened:
            given += [opened, rgb[:, :, ::-1], torch.from_numpy(rgb[:, :, ::-1].transpose(2, 0, 1).copy())]
            for i, one in enumerate(given):
                if hasattr(one, "seek") and i < 6:
                    one.seek(0)
                assert is_single(one)
                (frame,) = read_frames(one, image_format="RGB", workers=workers)
                np.testing.assert_array_equal(frame.image, rgb)
                is_file = one in (str(path), path) if i < 2 else one is file or one is opened
                assert (frame.path == str(path)) is is_file and frame.name == (str(path) if is_file else "image 0")
                assert (frame.index, frame.time, frame.error) == (0, None, None)
            file.seek(0)
            given[4].seek(0)
            frames = list(read_frames(given, workers=workers))
    assert [f.index for f in frames] == list(range(9)) and frames[3].name == "image 3"
    assert all((f.image == rgb[:, :, ::-1]).all() for f in frames)


def test_what_is_one_image(tmp_path):
    picture(tmp_path / "img[1].jpg")
    assert is_single(tmp_path / "img[1].jpg") and is_single("https://host/a.jpg?size=3") and is_single("missing.jpg")
    for many in (tmp_path, [], ["a.jpg"], "*.jpg", "a.mp4", "https://host/a.mp4?x=1", 0, "webcam:1", iter("a"), None):
        assert not is_single(many)
    assert names(tmp_path / "img[1].jpg", tmp_path) == ["img[1].jpg"]


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", None])
@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "I;16", "RGB", "1", "LA", "CMYK"])
def test_pillow_images_are_read_as_their_files(tmp_path, image_format, mode):
    pixels = RNG.integers(0, 200, (5, 7, 3)).astype(np.uint8)
    image = (
        Image.fromarray(pixels[:, :, 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path)
    expected = read_image(path, image_format)
    in_memory, from_bytes = read_frames([image, path.read_bytes()], image_format=image_format)
    np.testing.assert_array_equal(in_memory.image, expected)
    np.testing.assert_array_equal(from_bytes.image, expected)
    deep = Image.fromarray(np.full((5, 7), 300, np.uint16))
    (frame,) = read_frames(deep, image_format=image_format)
    assert frame.image.max() == 300 if image_format is None else "cut off at 0 and 255" in str(frame.error)


def test_the_orientation_of_exif_data(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = picture(tmp_path / "a.jpg", (6, 8), exif=exif)
    opened = Image.open(path)
    for policy, shape in (("apply", (8, 6, 3)), ("ignore", (6, 8, 3))):
        frames = list(read_frames([path, path.read_bytes(), opened], exif=policy))
        assert [f.image.shape for f in frames] == [shape] * 3
    with pytest.raises(ValueError, match="must be"):
        read_frames(path, exif="turn")


def test_arrays_are_converted_as_files_are(tmp_path):
    rgba = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)
    rgb, bgr = rgba[:, :, :3], rgba[:, :, 2::-1]
    grey, deep, numbers = rgb[:, :, 0], rgba.astype(np.uint16) * 200, rgb / 256
    np.save(tmp_path / "a.npy", rgb)

    def read(array, **options):
        (frame,) = read_frames(array, **options)
        if frame.error:
            raise frame.error
        return frame.image

    same = np.testing.assert_array_equal
    same(read(rgba, color="rgb"), bgr)
    same(read(rgba, color="rgb", image_format="RGB"), rgb)
    same(read(rgba, color="bgr", image_format="RGB"), bgr)
    same(read(rgb, color="rgb", image_format="L"), np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None])
    same(read(rgb, color="rgb", image_format="YUV-BT.601"), read_image(tmp_path / "a.npy", "YUV-BT.601"))
    same(read(grey), np.stack([grey] * 3, axis=2))
    same(read(grey[:, :, None], image_format="L"), grey[:, :, None])
    same(read(deep, image_format=None), deep)
    same(read(numbers, color="rgb"), numbers[:, :, ::-1])
    same(read(torch.from_numpy(numbers).bfloat16().permute(2, 0, 1), color="rgb"), numbers[:, :, ::-1])
    same(read(torch.from_numpy(grey.copy())), np.stack([grey] * 3, axis=2))
    for bad, cure in (
        (np.zeros((2, 5, 7, 3)), "one by one"),
        (rgb.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
        (torch.zeros(5, 7, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 5, 7), r"list\(batch\)"),
        (np.array(["a.jpg"]), "expected numbers"),
        (np.zeros((5, 7, 6), np.uint8), "format=None"),
    ):
        with pytest.raises(ValueError, match=f"image 0: .*{cure}"):
            read(bad)
    with pytest.raises(ValueError, match="color"):
        read_frames(rgb, color="gbr")


def test_folders_are_read_in_natural_order(tmp_path, monkeypatch):
    for name in ("img10.jpg", "img2.png", "b/x.tif", ".hidden.jpg", ".git/c.jpg", "b/c/1.bmp", "IMG3.JPG", "out/o.png"):
        picture(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("")
    expected = ["b/c/1.bmp", "b/x.tif", "img2.png", "IMG3.JPG", "img10.jpg", "out/o.png"]
    assert names(tmp_path, tmp_path) == expected
    assert names(tmp_path, tmp_path, exclude=tmp_path / "out") == expected[:-1]
    assert names(tmp_path / "out", tmp_path, exclude=tmp_path / "out") == ["out/o.png"]  # the input is the output
    assert names(str(tmp_path / "**" / "*.*"), tmp_path, exclude=tmp_path / "out") == expected[:-1]
    assert names(str(tmp_path / "**"), tmp_path) == expected
    assert names(str(tmp_path / "*"), tmp_path) == names(str(tmp_path / "**" / "*"), tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    assert [f.path for f in read_frames("**/*.bmp")] == [os.path.join("b", "c", "1.bmp")]
    assert [(f.path, f.source) for f in read_frames("*.png")] == [("img2.png", ".")]
    assert names(str(tmp_path / "**" / "c"), tmp_path) == ["b/c/1.bmp"]
    assert names(str(tmp_path / "**" / "b" / "*"), tmp_path) == ["b/c/1.bmp", "b/x.tif"]
    assert names(str(tmp_path / "*" / "*.*"), tmp_path, exclude=tmp_path / "out") == ["b/x.tif"]
    assert names(str(tmp_path / "img*.*"), tmp_path) == ["img2.png", "img10.jpg"]
    assert {f.source for f in read_frames(tmp_path)} == {str(tmp_path)}
    assert {f.source for f in read_frames(str(tmp_path / "*" / "*.tif"))} == {str(tmp_path)}


def test_links_in_circles_end(tmp_path):
    picture(tmp_path / "a" / "1.png")
    os.symlink(tmp_path, tmp_path / "a" / "again")
    os.symlink(tmp_path / "a", tmp_path / "z")
    assert names(tmp_path, tmp_path) == ["a/1.png"]
    assert names(str(tmp_path / "**" / "*.png"), tmp_path) == ["a/1.png"]
    os.symlink("itself.png", tmp_path / "a" / "itself.png")
    first, second = read_frames(tmp_path)
    assert first.error is None and isinstance(second.error, OSError) and second.name.endswith("itself.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "broken.png")
    with pytest.raises(FileNotFoundError, match=r"link to '.*gone\.png', which does not exist"):
        read_frames(tmp_path / "broken.png")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "pics" / "a.png")
    for source in ("~/pics", "~/pics/a.png", "~/pics/*.png"):
        assert names(source, tmp_path) == ["pics/a.png"]


def test_all_that_is_missing_is_said_before_the_first_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "dogs.jpg")
    with pytest.raises(FileNotFoundError, match=r"'dog\.jpg' \(working directory: .*\)\. Did you mean 'dogs\.jpg'\?"):
        read_frames("dog.jpg")
    with pytest.raises(FileNotFoundError, match=r"2 of 3 inputs cannot be read:\n- .*'cat\.jpg'.*\n- .*no folder 'x'"):
        read_frames(["cat.jpg", "dogs.jpg", "x/y.jpg"])
    with pytest.raises(TypeError, match=r"got NoneType: cv2\.imread returns None"):
        read_frames(["dogs.jpg", None])
    with pytest.raises(TypeError, match="got dict"):
        read_frames({"file_name": "dogs.jpg"})
    with pytest.raises(TypeError, match="one flat list"):
        read_frames([["dogs.jpg"]])
    with pytest.raises(FileNotFoundError, match="give the number 0 itself"):
        read_frames("0")
    with pytest.raises(FileNotFoundError, match="- and 2 more"):
        read_frames([f"{i}.jpg" for i in range(7)])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"It has videos: name them, such as 'videos/\*\.mp4'"):
        read_frames("videos")
    for options in ({"workers": -1}, {"ahead": 0}):
        with pytest.raises(ValueError, match="at least"):
            read_frames("dogs.jpg", **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_do_not_end_the_stream(tmp_path, workers):
    good = picture(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    (tmp_path / "c.png").write_bytes(good.read_bytes()[:60])
    text = open(tmp_path / "b.jpg")  # noqa: SIM115 (in the wrong mode)
    given = [good, tmp_path / "b.jpg", tmp_path / "c.png", b"short", text, good]
    first, *bad, last = read_frames(given, workers=workers)
    text.close()
    assert first.error is None and last.error is None and last.index == 5
    assert [type(f.error) for f in bad] == [OSError, OSError, OSError, ValueError] and all(f.image is None for f in bad)
    assert "b.jpg' is not an image" in str(bad[0].error) and "mode 'rb'" in str(bad[3].error)
    frames = list(read_frames((x for x in ["missing.png", good, None]), workers=workers))
    assert [type(f.error) for f in frames] == [FileNotFoundError, type(None), TypeError]
    assert [f.name for f in frames] == ["missing.png", str(good), "image 2"]


def test_a_file_that_is_deleted_meanwhile(tmp_path):
    paths = [picture(tmp_path / f"{i}.png") for i in range(3)]
    frames = read_frames(paths, workers=0)
    next(frames)
    paths[1].unlink()
    assert "moved or deleted meanwhile" in str(next(frames).error) and next(frames).error is None


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a web server, and what it was asked for."""
    content = {
        "/a.png": ("image/png", picture(tmp_path / "a.png").read_bytes()),
        "/login.jpg": ("text/html", b"<html>please log in"),
        "/broken.png": ("image/png", b"\x89PNG\r\n\x1a\n"),
        "/empty.png": ("image/png", b""),
    }
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/hangup.png":
                self.close_connection = True
                return
            kind, body = content.get(self.path, ("text/plain", b"gone"))
            self.send_response(200 if self.path in content else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("detectron2.utils._download.BACKOFF", ())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def test_urls(server, tmp_path):
    url, asked = server
    for _ in range(2):  # the second time from the cache
        (frame,) = read_frames(f"{url}/a.png", image_format="RGB")
        np.testing.assert_array_equal(frame.image, read_image(tmp_path / "a.png", "RGB"))
        assert (frame.name, frame.path) == (f"{url}/a.png", None)
    assert asked == ["/a.png"]
    bad = ["/none.png", "/login.jpg", "/broken.png", "/empty.png", "/hangup.png"]
    frames = list(read_frames([url + path for path in bad] + [f"{url}/a.png"]))
    assert frames[-1].error is None
    for path, frame in zip(bad, frames, strict=False):
        assert isinstance(frame.error, OSError) and url + path in str(frame.error)
    (again,) = read_frames(f"{url}/login.jpg")  # the page was not kept
    assert "a web page came instead of the file" in str(again.error) and asked.count("/login.jpg") == 2
    assert f"downloaded to {tmp_path / 'cache'}" in str(frames[2].error)
    secret = url.replace("//", "//me:word@")
    (frame,) = read_frames(f"{secret}/broken.png")
    assert frame.name == f"{url}/broken.png" and "word" not in str(frame.error)
    (frame,) = read_frames("nowhere://a.png")
    assert "no handler" in str(frame.error) and "nowhere://a.png" in str(frame.error)


def test_the_order_is_kept_whatever_decoding_takes(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{i}.png") for i in range(24)]
    delays = dict(zip(map(str, paths), RNG.uniform(0, 0.01, len(paths)), strict=True))
    real = sources.read_image
    together, most = 0, 0
    lock = threading.Lock()

    def slow(path, *args):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(delays[path])
        with lock:
            together -= 1
        return real(path, *args)

    monkeypatch.setattr(sources, "read_image", slow)
    frames = list(read_frames(paths, workers=4))
    assert [f.path for f in frames] == [str(p) for p in paths] and [f.index for f in frames] == list(range(24))
    assert 2 <= most <= 4


@pytest.mark.parametrize(("workers", "ahead"), [(0, 8), (2, 1), (2, 3), (3, 6)])
def test_few_images_are_alive_at_a_time(tmp_path, monkeypatch, workers, ahead):
    path = picture(tmp_path / "a.png")
    alive, most = weakref.WeakSet(), 0
    lock = threading.Lock()

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def read(*args):
        nonlocal most
        image = read_image(*args).view(Counted)
        with lock:
            alive.add(image)
            most = max(most, len(alive))
        return image

    monkeypatch.setattr(sources, "read_image", read)
    indices = []
    for frame in read_frames((path for _ in range(40)), workers=workers, ahead=ahead):
        indices.append(frame.index)
        time.sleep(0.002)
        del frame
    assert indices == list(range(40))
    assert most <= (ahead if workers else 1)
    gc.collect()
    assert not alive


def test_an_endless_generator_is_read_as_far_as_is_needed(tmp_path):
    path = picture(tmp_path / "a.png")
    made = []

    def endless():
        while True:
            made.append(path)
            yield path

    frames = read_frames(endless(), ahead=5)
    assert made == []
    for _ in range(10):
        next(frames)
    assert len(made) <= 15
    frames.close()


def test_images_in_memory_are_not_collected(tmp_path):
    """A generator of arrays may be live: a frame is returned before the next is asked for."""
    buffer, made = np.zeros((4, 6, 3), np.uint8), []

    def live():
        for i in range(3):
            buffer[:] = i
            made.append(i)
            yield buffer

    frames = read_frames(live(), ahead=8)
    first = next(frames)
    assert made == [0]
    second = next(frames)
    assert made == [0, 1] and first.image.max() == 0 and second.image.max() == 1  # its memory may be used again


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_users_generator_arrive_in_their_place(tmp_path, workers):
    path = picture(tmp_path / "a.png")
    error = KeyError("mine")

    def generator():
        yield from [path] * 3
        raise error

    seen = []
    with pytest.raises(KeyError) as raised:
        for frame in read_frames(generator(), workers=workers):
            seen.append(frame.index)
    assert raised.value is error and seen == [0, 1, 2]
    assert not threads()


@pytest.mark.parametrize("how", ["close", "break", "exception", "interrupt"])
def test_threads_end_with_the_stream(tmp_path, monkeypatch, how):
    paths = [picture(tmp_path / f"{i}.png") for i in range(20)]
    opened = []
    real = sources.read_image
    monkeypatch.setattr(sources, "read_image", lambda path, *args: opened.append(path) or real(path, *args))

    def use():
        for frame in read_frames(paths, workers=3, ahead=4):
            assert threads()
            if frame.index == 2:
                if how == "exception":
                    raise RuntimeError
                if how == "interrupt":
                    raise KeyboardInterrupt
                break

    if how in ("exception", "interrupt"):
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            use()
    elif how == "break":
        use()
    else:
        frames = read_frames(paths, workers=3)
        next(frames)
        frames.close()
    gc.collect()
    assert not threads() and len(opened) < 20


def test_inputs_are_listed_and_read_in_part(tmp_path):
    assert find_inputs([]) == []
    for name in ("b/1.png", "b/out/2.png", "b/10.png"):
        picture(tmp_path / name)
    (tmp_path / "clip.mp4").touch()
    pattern = str(tmp_path / "*.mp4")
    inputs = find_inputs([tmp_path / "b", pattern, 0], exclude=tmp_path / "b" / "out")
    assert [(str(i.value)[-6:], i.is_video) for i in inputs] == [
        ("/1.png", False), ("10.png", False), ("ip.mp4", True), ("0", True)
    ]  # fmt: skip
    (frame,) = read_frames(inputs[1:2])
    assert (frame.path, frame.source, frame.index) == (str(tmp_path / "b" / "10.png"), str(tmp_path / "b"), 0)
    assert find_inputs(str(tmp_path / "b" / "1.png")) == [
        Input(str(tmp_path / "b" / "1.png"), str(tmp_path / "b" / "1.png"))
    ]
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        find_inputs([tmp_path / "b", tmp_path / "gone.png"])


def test_a_frame_cannot_be_changed():
    frame = Frame(None, "a", None, 0)
    with pytest.raises(AttributeError):
        frame.index = 1
    assert (frame.time, frame.error, frame.source) == (None, None, None)
