"""The web application of `detectron2 serve`: images in, predictions out.

A request passes an admission (how many are let in, how many bytes, how much time), is decoded in a thread, waits for
others to share a batch with, and is answered in JSON, as COCO records, or as a picture.
"""

import asyncio
import contextlib
import io
import itertools
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image, UnidentifiedImageError
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from detectron2 import __version__
from detectron2.data.images import decode_image
from detectron2.inference import Predictor, Result
from detectron2.inference.sources import Frame
from detectron2.serving.batching import Batcher
from detectron2.serving.urls import fetch
from detectron2.visualization.colors import class_color

__all__ = ["Limits", "create_app"]

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_PAGE = Path(__file__).with_name("page.html")
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_QUERY = ("confidence", "format", "masks")
_ONE_IMAGE = "Send one image: a form with the file 'image' (curl -F image=@photo.jpg), or with 'url'."
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; media-src blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a service takes on.

    Args:
        max_bytes: of a request.
        max_pixels: of an image, height times width.
        max_requests: images that are uploaded, wait, or are predicted on at the same time. Further requests are
            answered with status 503 and the header `Retry-After`.
        timeout: seconds for one request, upload included; 504 says that it took longer.
        allow_urls: whether images may be given as addresses, from which the service downloads them.
        allow_private_urls: whether such an address may lead to the machine itself or into a private network.

    Raises:
        ValueError: a number is not above 0.

    Example:
        >>> Limits(max_pixels=1_000_000).max_requests
        64
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_requests: int = 64
    timeout: float = 30.0
    allow_urls: bool = False
    allow_private_urls: bool = False

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_requests", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}.")


def create_app(
    predictor: Predictor, *, limits: Limits | None = None, window: float = 0.005, threads: int = 4, name: str = "model"
) -> FastAPI:
    """Make an application that predicts on the images that it is sent, for uvicorn or another ASGI server.

    Paths:

    - `POST /predict`: a form with the file `image`, or with `url` where that is allowed. The query has `confidence`
      (least score, 0.5), `format` ("json": what `Result.to_dict` returns; "coco": records of COCO; "png": the image
      with what was found), and `masks` of JSON ("rle", "polygons", "none").
    - `GET /`: a page to try it on.
    - `GET /health`: 200 as long as images are taken, else 503.
    - `GET /info`: the model, its classes and their colours, the limits.
    - `GET /metrics`: numbers for Prometheus.
    - `GET /docs`, `GET /openapi.json`: this list, for programs.

    A mistake in a request is answered with a status from 400 on and `{"detail": text}`.

    Args:
        predictor: predicts in batches of up to its `batch_size`. Its `score_threshold` is the least confidence that a
            request can ask for.
        limits: what is taken on; None for the defaults.
        window: seconds for which an image waits for others, to be in a batch with them.
        threads: which decode images and draw.
        name: of the model, for those who ask.

    Returns:
        The application. It ends its threads when the server shuts down.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> changes = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", ""]
        >>> config = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
        >>> predictor = Predictor(config, device="cpu", overrides=changes, allow_random_weights=True)
        >>> with TestClient(create_app(predictor)) as client:
        ...     client.get("/health").json()
        {'status': 'ok'}
    """
    service = _Service(predictor, limits or Limits(), window, threads, name)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(service.close)

    text = "Predictions of one model. Boxes are (x1, y1, x2, y2) in pixels of the image."
    app = FastAPI(title="detectron2", version=__version__, description=text, lifespan=lifespan)
    app.add_middleware(_Admission, service=service)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    refused = {400: "the request", 413: "the size", 415: "the type of file", 422: "the image", 503: "full", 504: "time"}
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        response_model=None,
        responses={status: {"description": f"refused: {why}"} for status, why in refused.items()},
    )
    app.add_api_route("/health", service.health)
    app.add_api_route("/health", service.health, methods=["HEAD"], include_in_schema=False)  # as some balancers ask
    app.add_api_route("/info", service.info)
    app.add_api_route("/metrics", service.metrics, include_in_schema=False)
    app.add_api_route("/", service.page, include_in_schema=False)
    return app


class _Service:
    """What the paths share."""

    def __init__(self, predictor: Predictor, limits: Limits, window: float, threads: int, name: str):
        if not window >= 0 or threads < 1:
            raise ValueError(f"window must be at least 0 and threads at least 1, got {window!r} and {threads!r}.")
        self.predictor, self.limits, self.name, self.admitted = predictor, limits, name, 0
        self._window, self._threads = window, threads
        self._batcher: Batcher[Frame, Result] | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._numbers = itertools.count()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own: dict[str, Any] = {"registry": self.registry}
        self.answers = Counter("detectron2_requests", "Answers to POST /predict.", ["status"], **own)
        self.latency = Histogram("detectron2_request_seconds", "Time of answers with status 200.", **own)
        self._batches = Histogram("detectron2_batch_images", "Images of a batch.", buckets=_BATCH_SIZES, **own)
        self._model_time = Histogram("detectron2_batch_seconds", "Time of a batch, without decoding.", **own)
        Gauge("detectron2_requests_in_progress", "Requests let in.", **own).set_function(lambda: self.admitted)

    def open(self) -> None:
        self._limiter = anyio.CapacityLimiter(self._threads)
        self._batcher = Batcher(self._run, batch_size=self.predictor.batch_size, window=self._window)

    def close(self) -> None:
        if self._batcher is not None:
            self._batcher.close()

    @property
    def is_open(self) -> bool:
        return self._batcher is not None and self._batcher.is_open

    def _run(self, frames: list[Frame]) -> list[Result]:
        self._batches.observe(len(frames))
        with self._model_time.time():
            return self.predictor.predict_batch(frames)

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._limiter)

    # -- paths --------------------------------------------------------------------------------------------------------

    async def predict(
        self,
        request: Request,
        image: Annotated[UploadFile | None, File(description="JPEG, PNG, WebP, BMP, GIF or TIFF")] = None,
        url: Annotated[str | None, Form(description="of the image, where the service allows it")] = None,
        confidence: Annotated[float, Query(ge=0, le=1, description="least score")] = 0.5,
        format: Annotated[Literal["json", "coco", "png"], Query(description="of the answer")] = "json",
        masks: Annotated[Literal["rle", "polygons", "none"], Query(description="in JSON")] = "rle",
    ) -> Response:
        """Predict on an image."""
        form = await request.form()
        if sum(name in ("image", "url") for name, _ in form.multi_items()) != 1:
            raise HTTPException(400, _ONE_IMAGE)
        unknown = [n for n in request.query_params if n not in _QUERY] + [n for n in form if n not in ("image", "url")]
        if unknown:
            raise HTTPException(
                422,
                f"Not known there: {', '.join(map(repr, unknown))}. The query has {', '.join(_QUERY)}, as in "
                "/predict?confidence=0.5; the form has 'image' or 'url' alone.",
            )
        if image is not None:
            content, name = await image.read(), image.filename or "image"
        else:
            content, name = await self._in_thread(self._download, url), str(url).rpartition("/")[2] or "image"
        frame = await self._in_thread(self._decode, content, name)
        if self._batcher is None or not self.is_open:
            raise HTTPException(503, "The service is shutting down; try again later.")
        try:
            result = await asyncio.wrap_future(self._batcher.submit(frame))
        except Exception as error:
            logger.exception("The model failed on an image of %s pixels.", frame.image.shape)  # pyright: ignore
            raise HTTPException(500, f"The model failed on this image: {type(error).__name__}.") from error
        if result.error is not None:
            raise self._unusable(frame, result.error)
        return await self._in_thread(self._answer, result, confidence, format, masks)

    async def health(self) -> JSONResponse:
        """Whether images are taken."""
        return JSONResponse({"status": "ok" if self.is_open else "closed"}, 200 if self.is_open else 503)

    async def info(self) -> dict[str, Any]:
        """The model, its classes, and the limits."""
        metadata, predictor = self.predictor.metadata, self.predictor
        found: dict[str, Any] = {"name": self.name, "version": __version__, "device": str(predictor.device)}
        found |= {"precision": predictor.precision, "backend": predictor.backend, "batch_size": predictor.batch_size}
        found |= {"least_confidence": predictor.score_threshold, "exif": predictor.exif}
        for kind in ("thing", "stuff"):
            names = list(map(str, metadata.get(f"{kind}_classes") or []))
            given = metadata.get(f"{kind}_colors")
            found[f"{kind}_classes"] = names
            found[f"{kind}_colors"] = [[round(255 * c) for c in class_color(i, given)] for i in range(len(names))]
        points = list(metadata.get("keypoint_names") or [])
        rules = metadata.get("keypoint_connection_rules") or []
        found["keypoint_names"] = points
        found["keypoint_lines"] = [[a, b, list(c)] for a, b, c in rules if a in points and b in points]
        return {**found, "limits": asdict(self.limits)}

    async def metrics(self) -> Response:
        """Numbers for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(self) -> HTMLResponse:
        """A page to try the model on."""
        headers = {**_SAFE, "Content-Security-Policy": _PAGE_POLICY}
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=headers)

    # -- in threads ---------------------------------------------------------------------------------------------------

    def _download(self, url: str) -> bytes:
        limits = self.limits
        if not limits.allow_urls:
            raise HTTPException(403, "This service takes no addresses; send the file as 'image'.")
        try:
            return fetch(
                url,
                max_bytes=limits.max_bytes,
                timeout=limits.timeout,
                allow_private=limits.allow_private_urls,
            )
        except (OSError, ValueError) as error:
            raise HTTPException(400, f"The image cannot be downloaded: {error}") from None

    def _decode(self, content: bytes, name: str) -> Frame:
        """Look at the size before pixels are decoded."""
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                (width, height), mode = image.size, image.mode
        except Image.DecompressionBombError:
            most = min(self.limits.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or self.limits.max_pixels))
            raise HTTPException(413, f"The image has more than {most} pixels, which are the most.") from None
        except UnidentifiedImageError:
            what = f"not a file of one of {', '.join(_FORMATS)}" if content else "empty"
            raise HTTPException(415, f"The image is {what}.") from None
        except Exception as error:  # of a damaged header, Pillow raises many kinds
            raise HTTPException(422, f"The image cannot be read: {error}") from None
        if width * height > self.limits.max_pixels:
            most = self.limits.max_pixels
            raise HTTPException(413, f"The image has {width} x {height} pixels; at most {most} are taken.")
        predictor = self.predictor
        name = Path(name).name[:200] or "image"
        try:
            pixels = decode_image(content, predictor.image_format, predictor.exif, name)
        except ValueError:  # its text is for those who can change the config
            cure = "scale its values to 0..255, and send it with 8 bits a channel" if mode[0] in "IF" else "send RGB"
            raise HTTPException(422, f"The model does not take images of mode {mode}: {cure}.") from None
        except (OSError, TypeError) as error:  # the cause does not repeat that, and the name
            raise HTTPException(422, f"The image cannot be read: {error.__cause__ or error}") from None
        return Frame(pixels, name, None, next(self._numbers))

    def _unusable(self, frame: Frame, error: Exception) -> HTTPException:
        """Say of an image that the model does not take what its sender can do; the text of the error is for others."""
        pixels, mean = frame.image, self.predictor.pixel_mean
        assert pixels is not None
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if mean is not None and channels != len(mean):
            count = "1 channel" if channels == 1 else f"{channels} channels"
            return HTTPException(422, f"The image has {count}; the model takes images with {len(mean)}.")
        low, high = float(pixels.min()), float(pixels.max())
        if mean is not None and not (0 <= low <= high <= 255):
            there = f"The image has values from {low:g} to {high:g}; the model takes 0 to 255"
            return HTTPException(422, f"{there}: scale them, and send it again.")
        logger.error("An image of %s pixels cannot be predicted on: %s", pixels.shape, error)
        return HTTPException(500, "The service cannot predict on this image; its log says why.")

    def _answer(self, result: Result, confidence: float, format: str, masks: str) -> Response:
        result = result.filter(score=confidence)
        if format == "png":
            return Response(_png(result.plot()), media_type="image/png", headers=_SAFE)
        if format == "coco":
            return JSONResponse(_coco(result), headers=_SAFE)
        return Response(
            result.to_json(None if masks == "none" else masks), media_type="application/json", headers=_SAFE
        )


async def _refuse_query(request: Request, error: Exception) -> JSONResponse:
    """Say in one line what is wrong with each parameter."""
    assert isinstance(error, RequestValidationError)
    if any(e["loc"][0] == "body" for e in error.errors()):  # such as text where the file is to be
        return JSONResponse({"detail": _ONE_IMAGE}, 400)
    parts = [f"{e['loc'][-1]}: {e['msg']}, got {e.get('input')!r:.100}" for e in error.errors()]
    return JSONResponse({"detail": "; ".join(parts)}, 422)


def _coco(result: Result) -> Any:
    """Records of objects, else of segments, else of pixels."""
    if result.instances is not None:
        return result.to_coco(result.index)
    if result.panoptic_seg is not None:
        return result.to_coco_panoptic(result.index)[0]
    return result.to_coco_sem_seg()


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


class _Admission:
    """Holds requests to `/predict` within the limits of number, bytes and time, and counts the answers."""

    def __init__(self, app: Any, service: _Service):
        self.app, self.service = app, service

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/predict" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        service, limits = self.service, self.service.limits
        begin = anyio.current_time()
        status = 0

        async def counted_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                service.answers.labels(str(status)).inc()
            await send(message)

        async def refuse(status: int, why: str, **headers: str) -> None:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = JSONResponse({"detail": why}, status, headers={"Connection": "close", **headers})
            await answer(scope, receive, counted_send)

        size = Request(scope).headers.get("content-length", "")
        if size.isdecimal() and int(size) > limits.max_bytes:
            await refuse(413, f"The request has {size} bytes; at most {limits.max_bytes} are taken.")
            return
        if service.admitted >= limits.max_requests:
            await refuse(503, "The service is full; try again later.", Retry_After=str(math.ceil(self._wait())))
            return
        service.admitted += 1
        try:
            with anyio.move_on_after(limits.timeout) as within:
                await self.app(scope, self._limited(receive), counted_send)
            if within.cancelled_caught and not status:
                why = f"The answer was not ready within {limits.timeout:g} seconds"
                await refuse(504, f"{why}; send a smaller image, or try again later.")
        finally:
            service.admitted -= 1
        if status == 200:
            service.latency.observe(anyio.current_time() - begin)

    def _limited(self, receive: _Receive) -> _Receive:
        """Stop reading a request that says nothing of its size, or something wrong."""
        received, most = 0, self.service.limits.max_bytes

        async def limited() -> MutableMapping[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, f"The request has more than {most} bytes.")
            return message

        return limited

    def _wait(self) -> float:
        """Seconds in which one of those that are in is done, roughly."""
        done: Sequence[Any] = [s for m in self.service.latency.collect() for s in m.samples]
        total = {s.name.rpartition("_")[2]: s.value for s in done if not s.labels}
        return max(1.0, min(60.0, total.get("sum", 0.0) / max(1.0, total.get("count", 1.0))))
