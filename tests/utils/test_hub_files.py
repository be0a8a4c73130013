"""Addresses `hf://`, against a stand-in for the hub on this machine."""

import http.server
import threading

import pytest
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.provenance import weights_origin
from detectron2.utils import hub_files
from detectron2.utils.file_io import DownloadError, PathManager

pytest.importorskip("huggingface_hub")

COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dictionary of files by the path that the client asks for; what it asked for is in `hub["asked"]`."""
    files: dict = {"asked": [], "refused": {}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            files["asked"].append(self.path)
            content = files.get(self.path)
            refused = files["refused"].get(self.path.split("/")[2])
            self.send_response(refused or (404 if content is None else 200))
            self.send_header("Content-Length", str(len(content or b"")))
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body and content:
                self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield files
    server.shutdown()
    server.server_close()


def test_an_empty_file(hub):
    hub["/owner/name/resolve/main/empty.txt"] = b""
    with PathManager.open("hf://owner/name/empty.txt") as file:
        assert file.read() == ""


def test_weights_are_fetched_once(hub, tmp_path, monkeypatch):
    model = nn.Linear(2, 3)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    hub["/owner/name/resolve/v1/sub/weights.pth"] = (tmp_path / "weights.pth").read_bytes()
    other = nn.Linear(2, 3)
    DetectionCheckpointer(other).load("hf://owner/name@v1/sub/weights.pth")
    assert torch.equal(other.weight, model.weight)
    asked = len(hub["asked"])
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    assert PathManager.isfile("hf://owner/name@v1/sub/weights.pth")
    assert len(hub["asked"]) == asked > 0


def test_a_model_without_the_name_of_a_file(hub):
    hub["/owner/name/resolve/main/model.safetensors"] = b"a"
    hub["/owner/name/resolve/v1/model.safetensors"] = b"a"
    assert PathManager.get_local_path("hf://owner/name").endswith("model.safetensors")
    assert PathManager.get_local_path("hf://owner/name@v1").endswith("model.safetensors")


def test_the_licence_is_read_from_the_card_once(hub, tmp_path, monkeypatch):
    hub["/owner/name/resolve/main/README.md"] = b"---\nlicense: apache-2.0\n---\n"
    said = "The weights are from owner/name on the Hugging Face hub; licence on their card: apache-2.0."
    assert weights_origin("hf://owner/name/weights.pth") == said
    asked = len(hub["asked"])
    assert weights_origin("hf://owner/name") == said and len(hub["asked"]) == asked
    origin = weights_origin("hf://owner/other")
    assert origin is not None and "names no licence" in origin


def test_what_is_not_there(hub, monkeypatch):
    for address in ("hf://owner/name/none.pth", "hf://owner/name@v1/none.pth"):
        with pytest.raises(DownloadError, match=r"no model, version or file of that name: check it"):
            PathManager.get_local_path(address)
    assert not PathManager.exists("hf://owner/name/none.pth") and not PathManager.isdir("hf://owner/name/")
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    asked = len(hub["asked"])
    with pytest.raises(DownloadError, match=r"could not be had.*hf download owner/name other\.pth.*give the path"):
        PathManager.get_local_path("hf://owner/name/other.pth")
    assert len(hub["asked"]) == asked


@pytest.mark.parametrize("status", [401, 403])
def test_what_the_hub_gives_to_some(hub, status):
    hub["refused"]["gated"] = status
    with pytest.raises(DownloadError, match=r"if the model is gated or private, ask for access .* hf auth login") as e:
        PathManager.get_local_path("hf://owner/gated")
    assert "with network" not in str(e.value)


def test_wrong_use(monkeypatch):
    with pytest.raises(ValueError, match="not of the form hf://OWNER/NAME/FILE"):
        PathManager.get_local_path("hf://weights.pth")
    with pytest.raises(ValueError, match="can be read, not written"):
        PathManager.open("hf://owner/name/a.txt", "w")
    monkeypatch.setattr(hub_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'detectron2\[hub\]'"):
        PathManager.get_local_path("hf://owner/name/a.txt")


def test_a_download_that_breaks_off(monkeypatch):
    """The client lets the error of its HTTP library through, which is none of Python's own kinds."""
    import huggingface_hub

    class ProtocolError(Exception):
        pass

    def break_off(*args, **options):
        raise ProtocolError("peer closed connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", break_off)
    with pytest.raises(DownloadError, match=r"hf://me/x could not be had: peer closed connection. On a machine with"):
        PathManager.get_local_path("hf://me/x")
    assert not PathManager.exists("hf://me/x") and hub_files.cached_or_fetched("hf://me/x") is None
