import http.server
import os
import threading

import iopath.common.file_io
import pytest

from detectron2.utils import file_io
from detectron2.utils.file_io import Detectron2Handler, PathHandler, PathManager, atomic_write


def test_classes_are_those_of_iopath():
    assert isinstance(PathManager, iopath.common.file_io.PathManager)
    assert PathHandler is iopath.common.file_io.PathHandler


def test_local_paths(tmp_path):
    path = str(tmp_path / "a.txt")
    with PathManager.open(path, "w") as file:
        file.write("hello")
    assert PathManager.isfile(path)
    assert PathManager.get_local_path(path) == path
    assert PathManager.ls(str(tmp_path)) == ["a.txt"]


@pytest.fixture
def server(tmp_path):
    """A web server on this machine that serves one folder and counts requests."""
    folder = tmp_path / "served"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "weights.pkl").write_bytes(b"weights")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, format, *args):
            requests.append(args)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", requests
        httpd.shutdown()
        thread.join()


def test_remote_files_are_fetched_once(server, tmp_path, monkeypatch):
    url, requests = server
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", url)
    local = PathManager.get_local_path("detectron2://models/weights.pkl")
    assert local == str(tmp_path / "cache" / "models" / "weights.pkl")
    with PathManager.open("detectron2://models/weights.pkl", "rb") as file:
        assert file.read() == b"weights"
    assert len(requests) == 1
    assert not [name for name in os.listdir(os.path.dirname(local)) if name.endswith(".tmp")]


def test_a_missing_remote_file_leaves_nothing(server, tmp_path, monkeypatch):
    url, _ = server
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match="404"):
        PathManager.get_local_path(url + "models/absent.pkl")
    assert not (tmp_path / "cache" / "models" / "absent.pkl").exists()


def test_the_published_prefix(shared_dir):
    import json

    facts = json.loads((shared_dir / "facts" / "model_zoo_yaml.json").read_text())
    assert facts["url_prefix"] == Detectron2Handler.S3_DETECTRON2_PREFIX


@pytest.mark.parametrize(("mode", "content"), [("w", ""), ("w", "größe"), ("wb", b""), ("wb", b"\x00\xff")])
def test_atomic_write(tmp_path, mode, content):
    path = tmp_path / "new" / "folder" / "file"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert os.listdir(path.parent) == ["file"]


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write("file", "w") as file:
        file.write("x")
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_leaves_other_schemes_to_their_handler(tmp_path):
    class Memory(PathHandler):
        def _get_supported_prefixes(self):
            return ["memory://"]

        def _open(self, path, mode="r", buffering=-1, **kwargs):
            return open(tmp_path / path.removeprefix("memory://"), mode)

    manager = file_io.PathManagerBase()
    manager.register_handler(Memory())
    with atomic_write("memory://name", "w", manager) as file:
        file.write("x")
    assert (tmp_path / "name").read_text() == "x"
