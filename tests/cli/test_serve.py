"""`detectron2 serve`: it says where it listens, answers, and ends when it is told to."""

import io
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

PROGRAM = [sys.executable, "-c", "from detectron2.cli import main; raise SystemExit(main())", "serve"]


def post(address, query=""):
    """Send a black image as a form, and return the answer."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(stream, format="PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(f"{address}/predict{query}", head + stream.getvalue() + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_nothing_to_serve(command):
    status, _, err = command("serve", "--port", 0)
    assert status == 1 and "Give --weights" in err


def test_missing_weights(command, tmp_path):
    status, _, err = command("serve", "--port", 0, "--weights", tmp_path / "no.pth")
    assert status == 1 and "no.pth" in err


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_it_serves_until_a_signal(trained, number):
    options = ["--weights", str(trained / "model_final.pth"), "--port", "0", "--confidence", "0", "--verbose"]
    server = subprocess.Popen([*PROGRAM, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        address = re.search(r"Serving model_final.pth at (http://127.0.0.1:\d+)\. ", line)[1]
        found = post(address, "?confidence=0&masks=none")
        assert (found["file"], found["height"], found["width"]) == ("a.png", 40, 60) and found["objects"]
        assert post(address, "?confidence=1")["objects"] == []
        server.send_signal(getattr(signal, number))
        out, err = server.communicate(timeout=120)
    finally:
        server.kill()
    assert server.returncode == 0 and "POST /predict" in out + err and "Traceback" not in err
    assert "Everybody" not in out


def test_a_port_in_use(command):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, _, err = command("serve", "--weights", "no.pth", "--port", port)
    assert status == 1 and f"cannot listen at 127.0.0.1, port {port}" in err and "--port" in err


def test_an_impossible_host(command):
    status, _, err = command("serve", "--weights", "no.pth", "--host", "not a host")
    assert status == 1 and "--host not a host is not an address" in err


def test_missing_packages(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, err = command("serve", "--weights", "no.pth")
    assert status == 1 and "pip install 'detectron2[serve]'" in err
