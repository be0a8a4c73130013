"""`detectron2 serve`: predictions of a model over HTTP, and a page to try it on.

detectron2 serve --weights output/demo/model_final.pth
"""

import argparse
import contextlib
import io
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from PIL import Image

from detectron2.cli.common import load_predictor
from detectron2.inference import Predictor
from detectron2.utils.env import import_modules

_GPU_BATCH = 8
_WARM_UP_WH = 640, 480


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    try:
        import uvicorn

        from detectron2.serving import Limits, create_app
    except ImportError as e:
        raise ImportError(f"detectron2 serve needs more packages ({e}): pip install 'detectron2[serve]'") from None
    import_modules(args.imports)
    limits = Limits(
        max_bytes=int(args.max_megabytes * 1e6),
        max_pixels=int(args.max_megapixels * 1e6),
        max_requests=args.max_requests,
        timeout=args.timeout,
        allow_urls=args.allow_urls,
        allow_private_urls=args.allow_private_urls,
    )
    with _bound(args.host, args.port) as listener:  # before the model is loaded, which takes its time
        predictor = load_predictor(args, args.opts, score_threshold=args.confidence)
        predictor.batch_size = args.batch or (_GPU_BATCH if predictor.device.type != "cpu" else 1)
        _warm_up(predictor)
        name = os.path.basename(args.weights.rstrip("/")) or os.path.basename(args.config_file or "model")
        app = create_app(predictor, limits=limits, window=args.window / 1000, threads=args.workers, name=name)
        host, port = listener.getsockname()[:2]
        sys.stdout.write(f"Serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}. Ctrl-C ends it.\n")
        if not ipaddress.ip_address(host).is_loopback:
            sys.stdout.write("Everybody who can reach this address can use the service: it asks for no password.\n")
        sys.stdout.flush()
        logs: dict[str, Any] = {} if args.verbose else {"log_config": None, "access_log": False}
        config = uvicorn.Config(app, timeout_graceful_shutdown=int(args.timeout) + 1, server_header=False, **logs)
        with _ended_by_signals():
            uvicorn.Server(config).run(sockets=[listener])
    return 0


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM be the usual end: the server, which handles them, raises them again when it is done."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address that is free."""
    try:
        found: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(found[0], found[1])
    except OSError as e:
        raise ValueError(f"--host {host} is not an address of this machine: {e.strerror}.") from None
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise OSError(
            f"The service cannot listen at {host}, port {port}: {e.strerror}. Choose another port with --port (0 takes "
            "a free one)."
        ) from None
    return listener


def _warm_up(predictor: Predictor) -> None:
    """Predict on a blank image: a model that fails is seen now, and the first user does not wait."""
    stream = io.BytesIO()
    Image.new("RGB", _WARM_UP_WH).save(stream, format="PNG")
    predictor(stream.getvalue())
