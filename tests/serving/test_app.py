"""The service: what it answers, what it refuses, and that it keeps within its limits."""

import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as mask_util
from torch import nn

from detectron2.data import DatasetMapper, Metadata
from detectron2.inference import Predictor
from detectron2.serving import Limits, create_app
from detectron2.structures import Boxes, Instances


class Model(nn.Module):
    """Finds two objects, whose scores are the first two values of the image / 100; it waits while it is held."""

    def __init__(self, kind="instances"):
        super().__init__()
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 100.0))
        self.kind, self.batches = kind, []
        self.is_free, self.has_begun = threading.Event(), threading.Event()
        self.is_free.set()

    def forward(self, inputs):
        self.has_begun.set()
        assert self.is_free.wait(60)
        self.batches.append(len(inputs))
        return [self.find(x) for x in inputs]

    def find(self, x):
        height, width = x["height"], x["width"]
        if int(x["image"][0, 0, 0]) == 255:
            raise ValueError("an image that the model cannot take")
        labels = torch.zeros(height, width, dtype=torch.int64)
        labels[: height // 2] = 1
        if self.kind == "sem_seg":
            return {"sem_seg": torch.stack([1.0 - labels, labels.float()])}
        if self.kind == "panoptic_seg":
            segments = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
            return {"panoptic_seg": (labels, segments)}
        found = Instances((height, width), pred_boxes=Boxes([[1, 2, 5, 6], [0, 0, 4, 4]]))
        found.scores = x["image"][0, 0, :2] / 100
        found.pred_classes = torch.tensor([1, 0])
        found.pred_masks = torch.zeros(2, height, width, dtype=torch.bool)
        found.pred_masks[0, 2:6, 1:5] = True
        return {"instances": found}


def predictor_of(model, batch_size=4):
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    metadata = Metadata(thing_classes=["cat", "<b>"], thing_colors=[(1, 2, 3), (4, 5, 6)], stuff_classes=["sky", "sea"])
    return Predictor(model.eval(), batch_size=batch_size, mapper=mapper, optimize=False, metadata=metadata)


@pytest.fixture
def serve(request):
    """Start a service; the test ends it."""
    clients = []

    def start(model=None, *, batch_size=4, window=0.0, **limits):
        app = create_app(predictor_of(model or Model(), batch_size), limits=Limits(**limits), window=window, name="m")
        client = TestClient(app)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def image(size=(8, 10), first=(90, 40), format="PNG", **options):
    """A file, whose first row begins with these values."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[0, : len(first)] = np.array(first)[:, None]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format, **options)
    return stream.getvalue()


def post(client, content, name="a.png", **query):
    return client.post("/predict", files={"image": (name, content)}, params=query)


def number_of(client, name, **labels):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


def test_no_image(serve):
    client = serve()
    twice = [("image", ("a.png", image())), ("image", ("b.png", image()))]
    for sent in (
        {},
        {"data": {"other": "x"}},
        {"data": {"image": "@a.png"}},
        {"data": {"url": ["http://a/b.png", "http://a/c.png"]}},
        {"files": twice},
        {"files": twice[:1], "data": {"url": "http://a/b.png"}},
        {"json": {"image": "x"}},
    ):
        answer = client.post("/predict", **sent)
        assert answer.status_code == 400 and "the file 'image'" in answer.json()["detail"]
    answer = post(client, b"")
    assert answer.status_code == 415 and answer.json()["detail"] == "The image is empty."


def test_unknown_words(serve):
    client = serve()
    for sent in ({"params": {"confidense": 0.1}}, {"data": {"confidence": 0.1}}):
        answer = client.post("/predict", files={"image": ("a.png", image())}, **sent)
        assert answer.status_code == 422 and "/predict?confidence=0.5" in answer.json()["detail"]


def test_json(serve):
    answer = post(serve(), image(), name="folder/a.png")
    found = answer.json()
    assert answer.status_code == 200 and (found["file"], found["height"], found["width"]) == ("a.png", 8, 10)
    (cat,) = found["objects"]
    assert (cat["class"], cat["class_id"], cat["box_xyxy"], cat["area"]) == ("<b>", 1, [1, 2, 5, 6], 16)
    assert cat["score"] == pytest.approx(0.9)
    expected = np.zeros((8, 10), bool)
    expected[2:6, 1:5] = True
    np.testing.assert_array_equal(mask_util.decode(cat["mask"]), expected)


def test_confidence_and_masks(serve):
    client = serve()
    assert [o["class"] for o in post(client, image(), confidence=0.4).json()["objects"]] == ["<b>", "cat"]
    assert post(client, image(), confidence=0.95).json()["objects"] == []
    assert "mask" not in post(client, image(), masks="none").json()["objects"][0]
    (outline,) = post(client, image(), masks="polygons").json()["objects"][0]["mask"]
    assert (min(outline[::2]), max(outline[::2]), min(outline[1::2]), max(outline[1::2])) == (1, 5, 2, 6)


def test_coco(serve):
    client = serve()
    post(client, image())
    (record,) = post(client, image(), format="coco").json()
    assert (record["image_id"], record["category_id"], record["bbox"], record["file_name"]) == (
        1,
        1,
        [1, 2, 4, 4],
        "a.png",
    )


def test_picture(serve):
    answer = post(serve(), image((40, 60)), format="png")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (60, 40) and np.asarray(picture).any()


@pytest.mark.parametrize("kind", ["sem_seg", "panoptic_seg"])
def test_segmentations(serve, kind):
    client = serve(Model(kind))
    found = post(client, image()).json()
    if kind == "sem_seg":
        assert [(e["class"], e["area"]) for e in found["pixel_classes"]] == [("sky", 40), ("sea", 40)]
        assert [r["category_id"] for r in post(client, image(), format="coco").json()] == [0, 1]
    else:
        assert [(e["class"], e["area"], e["score"]) for e in found["segments"]] == [("cat", 40, 0.9)]
        (segment,) = post(client, image(), format="coco").json()["segments_info"]
        assert (segment["area"], segment["bbox"]) == (40, [0, 0, 10, 4])
    assert post(client, image(), format="png").status_code == 200


@pytest.mark.parametrize(("format", "name"), [("JPEG", "a.jpg"), ("WEBP", "b"), ("BMP", "c.txt"), ("TIFF", "d.tif")])
def test_types_of_files(serve, format, name):
    found = post(serve(), image(format=format), name=name).json()
    assert (found["height"], found["width"], found["file"]) == (8, 10, name)


def test_exif_orientation(serve):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = post(serve(), image(format="JPEG", exif=exif)).json()
    assert (found["height"], found["width"]) == (10, 8)


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"hello", 415, "JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "JPEG, PNG"),
        (image((50, 50))[:60], 422, "cannot be read"),
        (image((200, 200), format="JPEG")[:400], 422, "cannot be read"),
        (image(first=(255, 255)), 500, ""),
    ],
)
def test_hostile_files(serve, content, status, message):
    client = serve()
    client._transport.raise_server_exceptions = False
    answer = post(client, content)
    assert answer.status_code == status and message in answer.text
    assert post(client, image()).status_code == 200


def file_of(pixels, format="TIFF"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("pixels", "mode"), [(np.full((8, 10), 4000, np.uint16), "I;16"), (np.full((8, 10), 0.5, np.float32), "F")]
)
def test_values_of_more_than_8_bits(serve, pixels, mode):
    """The message says what the sender of the image can do, who cannot change the config."""
    client = serve()
    detail = post(client, file_of(pixels)).json()["detail"]
    expected = "scale its values to 0..255, and send it with 8 bits a channel."
    assert detail == f"The model does not take images of mode {mode}: {expected}"
    assert post(client, file_of(pixels.astype(np.uint8))).status_code == 200


def test_images_that_the_model_does_not_take():
    as_in_the_file = predictor_of(Model())
    as_in_the_file.image_format = None
    with TestClient(create_app(as_in_the_file)) as client:
        answer = post(client, file_of(np.zeros((8, 10), np.uint8)))
        expected = "The image has 1 channel; the model takes images with 3."
        assert (answer.status_code, answer.json()["detail"]) == (422, expected)
    as_in_the_file.pixel_mean = [100.0]
    with TestClient(create_app(as_in_the_file)) as client:  # the config is at fault, not the image
        answer = post(client, file_of(np.zeros((8, 10), np.uint8)))
        assert answer.status_code == 500 and "its log says why" in answer.json()["detail"]
        answer = post(client, file_of(np.full((8, 10), 4000, np.uint16)))
        assert answer.status_code == 422 and "values from 4000 to 4000; the model takes 0 to 255" in answer.text


def test_hostile_names(serve):
    client = serve()
    for name in ("../../etc/passwd", "a\x00b", "x" * 5000, "<script>", "é\n"):
        answer = post(client, image(), name=name)
        assert answer.status_code in (200, 400) and len(answer.json().get("file", "")) <= 200
    assert post(client, image(), name="../../etc/passwd").json()["file"] == "passwd"


def test_damaged_forms(serve):
    client = serve()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (
        b"",
        b"--x",
        b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\nabc\r\n--x--",
        b"\xff" * 100,
    ):
        assert 400 <= client.post("/predict", content=content, headers=headers).status_code < 500
    assert client.post("/predict", json={"image": "x"}).status_code == 400
    assert client.get("/predict").status_code == 405


@pytest.mark.parametrize("query", [{"confidence": 2}, {"confidence": "nan"}, {"format": "gif"}, {"masks": "all"}])
def test_impossible_queries(serve, query):
    answer = post(serve(), image(), **query)
    assert answer.status_code == 422 and answer.json()["detail"].startswith(f"{next(iter(query))}: ")


def test_too_many_pixels(serve):
    client = serve(max_pixels=100)
    assert post(client, image((10, 10))).status_code == 200
    answer = post(client, image((10, 11)))
    assert answer.status_code == 413 and "11 x 10 pixels; at most 100" in answer.json()["detail"]
    assert "more than" not in answer.text
    bomb = bytearray(image())
    bomb[16:24] = (30000).to_bytes(4, "big") * 2  # what the header says
    assert post(client, bytes(bomb)).status_code in (413, 415, 422)


def test_too_many_bytes(serve):
    client = serve(max_bytes=2000)
    assert post(client, image()).status_code == 200
    answer = post(client, b"x" * 3000)
    assert answer.status_code == 413 and "at most 2000" in answer.json()["detail"]

    def pieces():  # without a Content-Length
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    answer = client.post("/predict", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and "more than 2000 bytes" in answer.json()["detail"]


def test_requests_share_batches(serve):
    model = Model()
    client = serve(model, batch_size=4)
    model.is_free.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, client, image())
        assert model.has_begun.wait(60)
        others = [pool.submit(post, client, image(first=(10 * i, 0)), confidence=0) for i in range(8)]
        wait_until(lambda: number_of(client, "detectron2_requests_in_progress") == 9)
        time.sleep(0.2)  # until they are decoded
        model.is_free.set()
        scores = [max(o["score"] for o in f.result().json()["objects"]) for f in others]
    assert first.result().status_code == 200 and scores == pytest.approx([i / 10 for i in range(8)])
    assert model.batches[0] == 1 and sum(model.batches) == 9 and max(model.batches) > 1
    assert number_of(client, "detectron2_batch_images_sum") == 9


def wait_until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it took too long")


def test_full(serve):
    model = Model()
    client = serve(model, max_requests=2)
    model.is_free.clear()
    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(post, client, image()) for _ in range(2)]
        wait_until(lambda: number_of(client, "detectron2_requests_in_progress") == 2)
        refused = [post(client, image()) for _ in range(3)]
        assert client.get("/health").status_code == client.head("/health").status_code == 200
        model.is_free.set()
    assert [r.status_code for r in refused] == [503] * 3 and int(refused[0].headers["Retry-After"]) >= 1
    assert "try again" in refused[0].json()["detail"]
    assert [f.result().status_code for f in inside] == [200] * 2
    assert post(client, image()).status_code == 200
    assert number_of(client, "detectron2_requests_total", status="503") == 3
    assert number_of(client, "detectron2_requests_total", status="200") == 3
    assert number_of(client, "detectron2_requests_in_progress") == 0


def test_too_slow(serve):
    model = Model()
    client = serve(model, timeout=0.2, max_requests=1)
    model.is_free.clear()
    answer = post(client, image())
    assert answer.status_code == 504 and "within 0.2 seconds" in answer.json()["detail"]
    model.is_free.set()
    wait_until(lambda: post(client, image()).status_code == 200)


def test_one_bad_image_does_not_fail_its_batch(serve):
    model = Model()
    client = serve(model)
    client._transport.raise_server_exceptions = False
    model.is_free.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, client, image())
        assert model.has_begun.wait(60)
        others = [pool.submit(post, client, image(first=(value, 0))) for value in (80, 255, 70)]
        wait_until(lambda: number_of(client, "detectron2_requests_in_progress") == 4)
        time.sleep(0.2)
        model.is_free.set()
    assert [f.result().status_code for f in [first, *others]] == [200, 200, 500, 200]
    assert others[1].result().json() == {"detail": "The model failed on this image: ValueError."}


def test_addresses_are_refused(serve):
    answer = serve().post("/predict", data={"url": "http://127.0.0.1:1/a.png"})
    assert answer.status_code == 403 and "takes no addresses" in answer.json()["detail"]


def test_addresses(serve, tmp_path):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    (tmp_path / "b.png").write_bytes(image())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{files.server_port}/b.png"
        answer = serve(allow_urls=True).post("/predict", data={"url": url})
        assert answer.status_code == 400 and "private network" in answer.json()["detail"]
        client = serve(allow_urls=True, allow_private_urls=True)
        assert client.post("/predict", data={"url": url}).json()["file"] == "b.png"
        answer = client.post("/predict", data={"url": url + "x"})
        assert answer.status_code == 400 and "status 404" in answer.json()["detail"]
        both = client.post("/predict", data={"url": url}, files={"image": image()})
        assert both.status_code == 400 and "one image" in both.json()["detail"]
        files.shutdown()


def test_info(serve):
    info = serve(max_pixels=99).get("/info").json()
    assert (info["name"], info["thing_classes"], info["thing_colors"]) == ("m", ["cat", "<b>"], [[1, 2, 3], [4, 5, 6]])
    assert (info["stuff_classes"], len(info["stuff_colors"]), info["device"]) == (["sky", "sea"], 2, "cpu")
    assert info["limits"]["max_pixels"] == 99 and info["exif"] == "apply"


def test_page_and_documentation(serve):
    client = serve()
    page = client.get("/")
    assert "script-src 'unsafe-inline'" in page.headers["Content-Security-Policy"] and "Drop an image" in page.text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/info", "/health"} <= set(paths) and client.get("/docs").status_code == 200


def test_shutdown_finishes_what_waits():
    model = Model()
    app = create_app(predictor_of(model))
    client = TestClient(app)
    with client, ThreadPoolExecutor(1) as pool:
        model.is_free.clear()
        answer = pool.submit(post, client, image())
        assert model.has_begun.wait(60)
        model.is_free.set()
        assert answer.result().status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
    assert TestClient(app).get("/health").status_code == 503  # whose server was not started again
    assert post(TestClient(app), image()).status_code == 503
    assert not any(thread.name == "batches" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_requests", "timeout"])
def test_impossible_limits(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_impossible_options():
    for options in ({"window": -1}, {"threads": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            create_app(predictor_of(Model()), **options)


def test_answers_are_json_whatever_the_numbers(serve):
    class NotFinite(Model):
        def find(self, x):
            output = super().find(x)
            output["instances"].pred_boxes.tensor[0, 0] = float("nan")
            return output

    text = post(serve(NotFinite()), image()).text
    assert json.loads(text, parse_constant=pytest.fail)["objects"][0]["box_xyxy"][0] is None
