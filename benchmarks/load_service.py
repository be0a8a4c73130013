"""Put a service under load: many clients at once, thousands of requests, and files that are none.

python benchmarks/load_service.py                                     # a small model with random weights
python benchmarks/load_service.py --weights output/demo/model_final.pth --requests 5000 --clients 200

Starts `detectron2 serve` in a process of its own. Each client sends one image after the other; one that is told that
the service is full comes again after a tenth of a second. Prints how often each status came, images a second beside
those of the bare model on the same images, times of requests, and the memory of the service after each fifth of them.
Ends with the status 1 if an answer is wrong, a hostile file is not refused, or the service is gone.
"""

import argparse
import collections
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detectron2 import Predictor, model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

SIZES_HW = ((120, 160), (160, 120), (128, 128))
PROGRAM = [sys.executable, "-c", "from detectron2.cli import main; raise SystemExit(main())", "serve"]


def small_weights(folder: Path) -> str:
    """Write a checkpoint of a small Faster R-CNN with random weights, its config beside it."""
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.INPUT.MIN_SIZE_TEST = 120
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder / "model.pth")


def images() -> list[bytes]:
    """JPEG files of noise."""
    generator, files = np.random.default_rng(0), []
    for height, width in SIZES_HW:
        stream = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(stream, format="JPEG")
        files.append(stream.getvalue())
    return files


def hostile() -> dict[str, bytes]:
    """Files that a service has to refuse."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(stream, format="PNG")
    good = images()[0]
    return {
        "empty": b"",
        "text": b"hello",
        "cut off": good[: len(good) // 3],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "81 megapixels": stream.getvalue(),
        "30 MB": bytes(30_000_000),
    }


def post(port: int, content: bytes) -> tuple[int, bytes]:
    """Send a file, and return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    try:
        connection.request(
            "POST",
            "/predict?masks=none",
            head + content + b"\r\n--x--\r\n",
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (BrokenPipeError, ConnectionResetError):  # refused before all was sent
        return 413, b""
    finally:
        connection.close()


def megabytes(port: int) -> float:
    """Memory of the service, from its own numbers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)[1]) / 1e6


def load(port: int, requests: int, clients: int) -> tuple[collections.Counter, list[float], int]:
    """Send that many images; return statuses, seconds of those with status 200, and how many answers were wrong."""
    files, statuses, seconds = images(), collections.Counter(), []
    numbers, wrong = iter(range(requests)), collections.Counter()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if (number := next(numbers, None)) is None:
                    return
            which = number % len(files)
            while True:
                start = time.perf_counter()
                status, content = post(port, files[which])
                took = time.perf_counter() - start
                with lock:
                    statuses[status] += 1
                if status != 503:
                    break
                time.sleep(0.1)
            found = json.loads(content) if status == 200 else {}
            with lock:
                seconds.append(took)
                wrong["answers"] += (found.get("height"), found.get("width")) != SIZES_HW[which]

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, seconds, wrong["answers"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a checkpoint; default: a small model with random weights")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or small_weights(Path(folder))
        predictor = Predictor(weights, device="cpu", batch_size=args.batch)
        sample = images() * 20
        list(predictor(sample[:3]))
        start = time.perf_counter()
        for _ in predictor(sample):
            pass
        bare = len(sample) / (time.perf_counter() - start)
        options = ["--weights", weights, "--port", "0", "--batch", str(args.batch), "--timeout", "300"]
        server = subprocess.Popen([*PROGRAM, *options], stdout=subprocess.PIPE, text=True)
        try:
            port = int(re.search(r":(\d+)\. ", server.stdout.readline())[1])
            memory, statuses, seconds, wrong = [megabytes(port)], collections.Counter(), [], 0
            start = time.perf_counter()
            for _ in range(5):
                part = load(port, args.requests // 5, args.clients)
                statuses, seconds, wrong = statuses + part[0], seconds + part[1], wrong + part[2]
                memory.append(megabytes(port))
                print(f"{len(seconds)} answers, {memory[-1]:.0f} MB", flush=True)
            rate = len(seconds) / (time.perf_counter() - start)
            refused = {name: post(port, content)[0] for name, content in hostile().items()}
            status, _ = post(port, images()[0])
        finally:
            server.terminate()
            ended = server.wait(120)
    percentiles = statistics.quantiles(seconds, n=100)
    print(f"\n{args.clients} clients, {args.requests} images, batches of up to {args.batch}")
    print(f"statuses: {dict(statuses)}; wrong answers: {wrong}")
    print(f"images a second: {rate:.1f}; the bare model {bare:.1f}, ratio {rate / bare:.2f}")
    print(f"seconds of a request: median {percentiles[49]:.2f}, 99 of 100 below {percentiles[98]:.2f}")
    print(f"memory, MB: {', '.join(f'{m:.0f}' for m in memory)}")
    print(f"hostile files: {refused}; a good one afterwards: {status}; exit status: {ended}")
    is_right = wrong == 0 and status == 200 and ended == 0 and all(400 <= s < 500 for s in refused.values())
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
