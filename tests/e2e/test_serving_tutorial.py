"""The page about serving: its service is started, its requests are sent, and its tables are those of the code."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image

from detectron2.cli.arguments import parse
from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.serving import Limits
from tests.docs.pages import RUN, blocks_of
from tests.e2e.test_inference_tutorials import demo, text_of

__all__ = ["demo"]

PROGRAM = [sys.executable, "-c", "from detectron2.cli import main; raise SystemExit(main())"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.usefixtures("demo")
def test_the_page_runs(repo_root, capsys):
    generate_shapes_dataset("demo/data/val", 1, seed=7)
    page, text = repo_root / "docs" / "tutorials" / "serving.md", text_of(repo_root, "serving")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    answers, server = {}, None
    try:
        for found in (b for b in blocks_of(page) if b["kind"] in RUN):
            kind, block = found["kind"], found["text"]
            if kind == "python":
                exec(compile(block, "serving.md", "exec"), {"__name__": "tutorial"})  # our own documentation
                continue
            for line in block.replace(":8000", f":{port}").splitlines():
                program, *words = shlex.split(line)
                if words[0] == "serve":
                    server = subprocess.Popen([*PROGRAM, *words, "--port", port], stdout=subprocess.PIPE, text=True)
                    assert port in server.stdout.readline()
                elif program == "curl":
                    run = subprocess.run([program, "--fail-with-body", *words], capture_output=True, timeout=120)
                    assert run.returncode == 0, run.stdout
                    answers[line] = run.stdout
                elif program == "cp":
                    shutil.copy(*words)
                else:
                    assert words[0] == "demo"  # trains for minutes; the fixture stands for it
    finally:
        if server is not None:
            server.terminate()
            server.wait(120)
    assert len(answers) == text.count("curl") and server.returncode == 0
    with Image.open("photo.png") as photo, Image.open("drawn.png") as drawn:
        assert drawn.size == photo.size
    assert json.loads(next(iter(answers.values())))["width"] == photo.size[0]
    with open("records.json", encoding="utf-8") as file:
        assert isinstance(json.load(file), list)
    assert re.search(r"^200 \d+ objects$", capsys.readouterr().out, re.MULTILINE)


def test_limits_and_defaults_are_those_of_the_command(repo_root):
    text, args, limits = text_of(repo_root, "serving"), vars(parse(["serve"])), Limits()
    for option, value in re.findall(r"`--([a-z-]+) (\d+)`", text):
        assert args[option.replace("-", "_")] == float(value), option
    assert (args["max_megabytes"] * 1e6, args["max_megapixels"] * 1e6) == (limits.max_bytes, limits.max_pixels)
    assert (args["max_requests"], args["timeout"]) == (limits.max_requests, limits.timeout)
    assert f":{args['port']}" in text and args["host"] == "127.0.0.1" and str(args["confidence"]) in text
