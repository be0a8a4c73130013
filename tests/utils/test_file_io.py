import base64
import errno
import hashlib
import http.server
import io
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
from types import SimpleNamespace

import iopath.common.file_io
import pytest
import torch
from iopath.common.file_io import file_lock

from detectron2.utils import file_io
from detectron2.utils._download import _request, cache_folder, cached_path
from detectron2.utils.file_io import (
    Detectron2Handler,
    DownloadError,
    HTTPURLHandler,
    PathHandler,
    PathManager,
    atomic_write,
)
from detectron2.utils.logger import setup_logger

CONTENT = bytes(range(250)) * 20


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


class Server(http.server.ThreadingHTTPServer):
    """A web server on this machine. Its files are ``files``; ``requests`` are (method, path, headers); the other
    attributes are faults, which tests set.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.statuses: list[int] = []  # of the next answers
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.ranges = True
        self.etag: str | None = '"1"'
        self.modified: str | None = None
        self.headers: dict[str, str] = {}
        self.release = threading.Event()  # bodies wait for it
        self.release.set()

    def handle_error(self, request, client_address):
        pass  # a client may close the connection


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def answer(self, body=True):
        server = self.server
        with server.lock:
            server.requests.append((self.command, self.path, dict(self.headers)))
            status = server.statuses.pop(0) if server.statuses else 200
            cut = server.cuts.pop(0) if server.cuts and body else None
        content = server.files.get(self.path.lstrip("/"))
        if content is None or status != 200:
            self.send_error(404 if content is None else status)
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, server.etag, server.modified)
        if server.ranges and asked and same:
            start = int(asked[1])
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in {"ETag": server.etag, "Last-Modified": server.modified, **server.headers}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            server.release.wait(20)
            self.wfile.write(content[start:] if cut is None else content[start : start + cut])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with one file of weights, an empty cache, and no waiting between attempts."""
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DETECTRON2_OFFLINE", raising=False)
    monkeypatch.setattr("detectron2.utils._download.BACKOFF", (0.0, 0.0))
    with Server() as httpd:
        httpd.files = {"models/weights.pkl": CONTENT, "empty.pth": b""}
        monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", httpd.url)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def log(caplog, monkeypatch):
    """(level, message) of what was logged."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2.utils")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


WEIGHTS = "detectron2://models/weights.pkl"


def kept(tmp_path):
    """Names of the files in the cache but for the locks, which stay."""
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock")


def content_of(local):
    with open(local, "rb") as file:
        return file.read()


def test_remote_files_are_fetched_once(server, tmp_path):
    local = PathManager.get_local_path(WEIGHTS)
    assert local == str(tmp_path / "cache" / f"127.0.0.1_{server.server_port}_http" / "models" / "weights.pkl")
    with PathManager.open(WEIGHTS, "rb") as file:
        assert file.read() == CONTENT
    assert PathManager.get_local_path(server.url + "models/weights.pkl") == local
    assert len(server.requests) == 1
    assert kept(tmp_path) == ["weights.pkl"]


def test_an_empty_file_is_no_download(server, tmp_path):
    with pytest.raises(DownloadError, match=r"empty\.pth could not be downloaded: an empty file came, twice"):
        PathManager.get_local_path("detectron2://empty.pth")
    assert kept(tmp_path) == []
    server.files["empty.pth"] = CONTENT
    local = PathManager.get_local_path("detectron2://empty.pth")
    assert content_of(local) == CONTENT
    open(local, "wb").close()  # as an earlier version left it
    assert content_of(PathManager.get_local_path("detectron2://empty.pth")) == CONTENT


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "http://host/mod\u00e8le \u4e2d.pth",
            r"character '\u00e8', which it may not have; in paths write %C3%A8 in",
        ),
        ("http://h\u00f6st/a?n=\u00e9", r"character '\u00f6'"),
        ("https://me:s\u00e9cret@host/a.pth", r"^https://host/a.pth is not an address"),
        ("http://host/a b.pth", r"character ' '"),
        ("http://host/a\nb.pth", r"character '\\n'"),
        ("http://host:port/a.pth", "has no host, with a number as its port"),
        ("http://[host/a.pth", "has no host, with a number as its port"),
        ("http:///a.pth", "names no host"),
    ],
)
def test_what_is_no_address_is_told_at_once(server, url, message):
    with pytest.raises(DownloadError, match=message) as caught:
        PathManager.get_local_path(url)
    assert "s\u00e9cret" not in str(caught.value)
    assert not PathManager.exists(url)


@pytest.mark.parametrize("password", ["pass%40word", "a:b@c"])
def test_passwords_are_sent_and_never_shown(server, tmp_path, log, monkeypatch, capsys, password):
    url = server.url.replace("//", f"//me:{password}@") + "models/weights.pkl"
    assert PathManager.exists(url)
    local = PathManager.get_local_path(url)
    assert content_of(local) == CONTENT
    sent = {headers["Authorization"] for _, _, headers in server.requests}
    plain = {"pass%40word": "pass@word", "a:b@c": "a:b@c"}[password]
    assert sent == {"Basic " + base64.b64encode(f"me:{plain}".encode()).decode()}
    server.statuses = [503, 404]
    with pytest.raises(DownloadError) as caught:
        PathManager.get_local_path(url + "x")
    monkeypatch.setenv("DETECTRON2_OFFLINE", "1")
    with pytest.raises(DownloadError) as offline:
        PathManager.get_local_path(url + "x")
    records = log()
    setup_logger(str(tmp_path / "log.txt"), name=f"passwords.{hash(password)}").info("Loading %s", url)
    shown = [caught.value, caught.value.url, offline.value, records, local, (tmp_path / "log.txt").read_text()]
    assert not any(p in str(text) for p in (password, plain, "me:") for text in [*shown, capsys.readouterr()])


def test_a_password_is_not_sent_on(server):
    assert _request("http://me:x@host/", {}).unredirected_hdrs["Authorization"] == "Basic bWU6eA=="
    assert "Authorization" not in _request("http://me:x@host/", {}).headers
    assert _request("ftp://me:x@host/", {}).full_url == "ftp://me:x@host/"


def test_two_addresses_never_share_a_file():
    urls = [
        *(
            "http://host/a.pth",
            "https://host/a.pth",
            "ftp://host/a.pth",
            "https://host:8/a.pth",
            "https://me@host/a.pth",
        ),
        *("https://host//a.pth", "https://host/../a.pth", "https://host/a.pth/", "https://host/a.pth?x=1/2"),
        *("https://host/a.pth?x=1_2", "https://host", "https://host/index", "http://dl.fbaipublicfiles.com/a.pth"),
    ]
    assert len({cached_path(url, "/c") for url in urls}) == len(urls)


def test_force_fetches_again(server):
    PathManager.get_local_path(WEIGHTS)
    server.files["models/weights.pkl"] = b"newer"
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT
    assert content_of(PathManager.get_local_path(WEIGHTS, force=True)) == b"newer"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DETECTRON2_CACHE": "/a", "FVCORE_CACHE": "/b"}, "/a"),
        ({"FVCORE_CACHE": "/b"}, "/b"),
        ({"DETECTRON2_CACHE": "", "FVCORE_CACHE": "/b"}, "/b"),
        ({"DETECTRON2_CACHE": "~/a"}, os.path.expanduser("~/a")),
        ({}, os.path.expanduser("~/.torch/iopath_cache")),
    ],
)
def test_the_folder_of_the_cache(monkeypatch, environment, expected):
    for name in ("DETECTRON2_CACHE", "FVCORE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected
    assert cache_folder("/given") == "/given"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://dl.fbaipublicfiles.com/detectron2/a/b.pkl", "detectron2/a/b.pkl"),  # as in other programs' cache
        ("https://host/a/b.pkl", "host/a/b.pkl"),
        ("https://other/a/b.pkl", "other/a/b.pkl"),
        ("https://user:secret@host:80/b.pkl", "host_80_user/b.pkl"),
        ("http://host/a/b.pkl", "host_http/a/b.pkl"),
        (
            "https://host/../../../etc/passwd",
            "host/etc/passwd_15d4f059b68228a261ac10ac988a24cfc82cfef4f2622a26f92beba5b7c1c38f",
        ),
        ("https://host/get?id=1/2", "host/get?id=1_2_a17db91e8f9dbe73d5edfcbba7f07c9564ebc6ed38e3a99360e317affb5b3980"),
        ("https://host/", "host/index_a9660f90084f0d4d677933195cb3397597a328e5a7c6a879f8b01775e7131a02"),
        ("https://host", "host/index_50042e55e68692950b33805ba5de62f86617396918dbb15f3901cb30378f9fb6"),
    ],
)
def test_places_in_the_cache(url, expected):
    assert cached_path(url, "/cache") == f"/cache/{expected}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/a/b.pth", r"host/a/b\.pth"),
        ("https://host/a.pth?x=1", r"host/a_[0-9a-f]{64}\.pth_x=1"),
        ("https://host/a:b/c.pth", r"host/a_b/c_[0-9a-f]{64}\.pth"),
        (r"https://host/..\..\c.pth", r"host/\.\._\.\._c_[0-9a-f]{64}\.pth"),
    ],
)
def test_places_in_the_cache_of_windows(url, expected, monkeypatch):
    monkeypatch.setattr("detectron2.utils._download._FORBIDDEN", '<>:"|?*\\')
    assert re.fullmatch(f"/cache/{expected}", cached_path(url, "/cache"))


def test_long_names_are_cut_and_stay_different():
    names = [os.path.basename(cached_path(f"https://host/{'x' * 300}{i}.pkl", "/c")) for i in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert max(map(len, names)) < 240


@pytest.mark.parametrize("validators", [('"v1"', None), (None, "Mon, 01 Jan 2024 00:00:00 GMT"), ('W/"1"', None)])
def test_a_cut_download_continues(server, tmp_path, validators, log):
    server.etag, server.modified = validators
    server.cuts = [1000, 500]
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT
    assert [headers.get("Range") for _, _, headers in server.requests] == [None, "bytes=1000-", "bytes=1500-"]
    assert kept(tmp_path) == ["weights.pkl"]
    assert any("1,000 of 5,000 bytes" in message for level, message in log() if level == "WARNING")


def test_another_process_continues(server, tmp_path):
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"gave up after 3 attempts.*after the 1,000 bytes that arrived"):
        PathManager.get_local_path(WEIGHTS)
    assert kept(tmp_path) == ["weights.pkl.part", "weights.pkl.part.json"]
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT
    assert server.requests[-1][2]["Range"] == "bytes=1000-"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("validators", [('"2"', None), (None, "Tue, 02 Jan 2024 00:00:00 GMT"), (None, None)])
def test_a_file_that_has_changed_starts_again(server, ranges, validators):
    server.modified = "Mon, 01 Jan 2024 00:00:00 GMT" if validators[1] else None
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        PathManager.get_local_path(WEIGHTS)
    server.files["models/weights.pkl"] = CONTENT[::-1]
    server.etag, server.modified = validators
    server.ranges = ranges
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT[::-1]


def test_a_server_that_continues_another_version_is_noticed(server):
    """It ignores If-Range, and sends the rest of what the file is now."""
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        PathManager.get_local_path(WEIGHTS)
    server.files["models/weights.pkl"] = CONTENT[::-1]
    server.headers["ETag"] = '"2"'  # sent, while the comparison with the request is with the old one
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT[::-1]


def test_a_part_longer_than_the_file(server):
    server.cuts = [1000, 0, 0, 0]
    with pytest.raises(DownloadError):
        PathManager.get_local_path(WEIGHTS)
    server.files["models/weights.pkl"] = CONTENT[:500]
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT[:500]


def test_a_part_without_its_version_is_not_continued(server, tmp_path):
    local = tmp_path / "cache" / f"127.0.0.1_{server.server_port}_http" / "models"
    local.mkdir(parents=True)
    (local / "weights.pkl.part").write_bytes(b"x" * 100)
    for version in (None, "no json", "[1]"):
        if version:
            (local / "weights.pkl.part.json").write_text(version)
        assert content_of(PathManager.get_local_path(WEIGHTS, force=True)) == CONTENT
        (local / "weights.pkl.part").write_bytes(b"x" * 100)
    assert all("Range" not in headers for _, _, headers in server.requests)


def test_errors_of_the_server_that_may_pass(server, log):
    server.statuses = [503, 500, 200]
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT
    assert [message for level, message in log() if level == "WARNING" and "503" in message]


def test_errors_of_the_server_that_stay(server, tmp_path):
    server.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"503.*gave up after 3 attempts"):
        PathManager.get_local_path(WEIGHTS)
    assert len(server.requests) == 3
    assert kept(tmp_path) == []


def test_a_missing_file_is_not_asked_for_again(server, tmp_path):
    url = server.url + "models/absent.pkl"
    with pytest.raises(OSError, match=r"absent\.pkl.*404") as caught:
        PathManager.get_local_path(url)
    error = caught.value
    assert isinstance(error, DownloadError)
    assert (error.url, error.status) == (url, 404)
    assert error.cached.startswith(str(tmp_path)) and error.cached in str(error)
    assert len(server.requests) == 1
    assert kept(tmp_path) == []


def test_silence_is_an_error(server, monkeypatch):
    monkeypatch.setattr("detectron2.utils._download.TIMEOUT", 0.1)
    server.release.clear()
    with pytest.raises(DownloadError, match=r"connection broke.*timed out"):
        PathManager.get_local_path(WEIGHTS)
    server.release.set()


def test_no_server(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"no connection.*HTTPS_PROXY"):
        PathManager.get_local_path(WEIGHTS)


def test_unknown_hosts(server, monkeypatch):
    def unknown(*args, **kwargs):
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", unknown)
    with pytest.raises(DownloadError, match="name of the host is not known"):
        PathManager.get_local_path(WEIGHTS)


def test_a_web_page_is_no_checkpoint(server, tmp_path):
    server.headers["Content-Type"] = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="a web page came"):
        PathManager.get_local_path(WEIGHTS)
    assert kept(tmp_path) == []


# ----------------------------------------------------------------------------------------------------------- checksums


def announced(content):
    sha256 = base64.b64encode(hashlib.sha256(content).digest()).decode()
    md5 = hashlib.md5(content).hexdigest()
    return {
        "sha256": {"Repr-Digest": f"sha-256=:{sha256}:"},
        "md5": {"Content-MD5": base64.b64encode(bytes.fromhex(md5)).decode()},
        "s3": {"Server": "AmazonS3", "ETag": f'"{md5}"'},
    }


@pytest.mark.parametrize("kind", ["sha256", "md5", "s3"])
def test_what_the_server_announces_is_compared(server, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(Handler, "send_response", Handler.send_response_only)  # without a "Server" of its own
    server.headers = announced(CONTENT)[kind]
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT
    os.remove(PathManager.get_local_path(WEIGHTS))
    server.headers = announced(b"something else")[kind]
    wrong = hashlib.new("sha256" if kind == "sha256" else "md5", CONTENT).hexdigest()
    with pytest.raises(DownloadError, match=rf"weights\.pkl.*{wrong}.*the server announced [0-9a-f]+, twice"):
        PathManager.get_local_path(WEIGHTS)
    assert len(server.requests) == 3
    assert kept(tmp_path) == []


def test_a_file_that_came_spoilt_once_is_fetched_again(server):
    server.headers = announced(CONTENT)["sha256"]
    server.files["models/weights.pkl"] = CONTENT[::-1]

    def repair(path, *args):
        server.files["models/weights.pkl"] = CONTENT
        return original(path, *args)

    original = shutil.disk_usage
    server.cuts = [1000]
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        patch.setattr("shutil.disk_usage", lambda path: repair(path) if calls else calls.append(1) or original(path))
        assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT


@pytest.mark.parametrize("headers", [{"Content-MD5": "no base64!"}, {"Repr-Digest": "md5=:AAAA:"}])
def test_digests_that_cannot_be_read_are_passed_over(server, headers):
    server.headers = headers
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT


@pytest.mark.parametrize(
    ("name", "warns"),
    [
        (f"model_final_{hashlib.sha256(b'weights').hexdigest()[:6]}.pkl", False),
        (f"model_final_{hashlib.md5(b'weights').hexdigest()[:6]}.pkl", False),
        (f"model_final_{hashlib.md5(b'weights').hexdigest()}.pkl", False),
        ("model_final_f10217.pkl", True),
        ("model_final_123456.pkl", False),  # a number
        ("the_facade.pkl", False),  # a word
        ("R-50.pkl", False),
    ],
)
def test_digits_in_the_names_of_published_files(server, name, warns, log):
    server.files[f"zoo/{name}"] = b"weights"
    assert content_of(PathManager.get_local_path(f"detectron2://zoo/{name}")) == b"weights"
    warnings = [message for level, message in log() if level == "WARNING"]
    assert bool(warnings) == warns
    if warns:
        assert "f10217" in warnings[0] and hashlib.sha256(b"weights").hexdigest() in warnings[0]


@pytest.mark.parametrize("count", [8, 10, 64])
def test_sha256_in_the_names_of_torchvision(server, tmp_path, count, log, monkeypatch):
    monkeypatch.setattr(HTTPURLHandler, "PYTORCH_PREFIX", f"{server.url}models/")
    digits = hashlib.sha256(b"weights").hexdigest()[:count]
    server.files[f"models/net_coco-{digits}.pth"] = b"weights"
    address = f"{server.url}models/net_coco-{digits}.pth"
    assert content_of(PathManager.get_local_path(address)) == b"weights"
    assert not [message for level, message in log() if level == "WARNING"]
    os.remove(PathManager.get_local_path(address))
    server.files[f"models/net_coco-{digits}.pth"] = b"weight5"
    wrong = hashlib.sha256(b"weight5").hexdigest()
    with pytest.raises(DownloadError, match=rf"sha256 of the downloaded file is {wrong}, but .* name {digits}, twice"):
        PathManager.get_local_path(address)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("name", ["net-0123456789.pkl", "net-12345678.tar", "net_12345678.pth", "net-1234567.pth"])
def test_other_names_hold_no_sha256(server, name, monkeypatch):
    monkeypatch.setattr(HTTPURLHandler, "PYTORCH_PREFIX", f"{server.url}models/")
    server.files[f"models/{name}"] = server.files["net-12345678.pth"] = b"weights"
    assert content_of(PathManager.get_local_path(f"{server.url}models/{name}")) == b"weights"
    assert content_of(PathManager.get_local_path(f"{server.url}net-12345678.pth")) == b"weights"


# ------------------------------------------------------------------------------------------ offline, disk, processes


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline(server, tmp_path, monkeypatch, value):
    monkeypatch.setenv("DETECTRON2_OFFLINE", value)
    with pytest.raises(DownloadError, match="DETECTRON2_OFFLINE") as caught:
        PathManager.get_local_path(WEIGHTS)
    path = tmp_path / "cache" / f"127.0.0.1_{server.server_port}_http" / "models" / "weights.pkl"
    assert f"{server.url}models/weights.pkl" in str(caught.value) and str(path) in str(caught.value)
    assert not PathManager.exists(WEIGHTS)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"put there by hand")
    assert PathManager.get_local_path(WEIGHTS) == str(path)
    assert PathManager.exists(WEIGHTS) and PathManager.isfile(WEIGHTS)
    assert server.requests == []


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_not_offline(server, monkeypatch, value):
    monkeypatch.setenv("DETECTRON2_OFFLINE", value)
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT


def test_existence_is_asked_without_fetching(server, tmp_path):
    assert PathManager.exists(WEIGHTS) and PathManager.isfile(WEIGHTS) and not PathManager.isdir(WEIGHTS)
    assert not PathManager.exists("detectron2://models/absent.pkl")
    assert not PathManager.isdir(server.url)
    assert {method for method, _, _ in server.requests} == {"HEAD"}
    assert kept(tmp_path) == []


def test_too_little_space_is_told_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DownloadError, match=r"disk is full.*DETECTRON2_CACHE"):
        PathManager.get_local_path(WEIGHTS)
    assert kept(tmp_path) == []


def test_a_disk_that_becomes_full(server, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("detectron2.utils._download._copy", full)
        with pytest.raises(DownloadError, match="disk is full"):
            PathManager.get_local_path(WEIGHTS)
    assert content_of(PathManager.get_local_path(WEIGHTS)) == CONTENT


def test_a_cache_that_cannot_be_written_to(server, tmp_path, monkeypatch, log):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_CACHE", str(tmp_path / "file" / "cache"))
    local = PathManager.get_local_path(WEIGHTS)
    assert local.startswith(str(tmp_path / "temporary"))
    assert any("DETECTRON2_CACHE" in message for level, message in log() if level == "WARNING")


def test_one_of_several_processes_downloads(server, tmp_path):
    code = (
        "import sys; from detectron2.utils.file_io import PathManager;"
        "print(PathManager.get_local_path(sys.argv[1]), flush=True)"
    )
    server.release.clear()
    command = [sys.executable, "-c", code, server.url + "models/weights.pkl"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lock = tmp_path / "cache" / f"127.0.0.1_{server.server_port}_http" / "models" / "weights.pkl.lock"
    while not server.requests:  # one has begun
        assert any(process.poll() is None for process in processes)
        threading.Event().wait(0.01)
    assert lock.exists()
    server.release.set()
    outputs = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert outputs == {str(lock).removesuffix(".lock")}
    assert len(server.requests) == 1
    assert content_of(outputs.pop()) == CONTENT


def test_waiting_for_another_process_ends(server, monkeypatch, log):
    monkeypatch.setattr("detectron2.utils._download.LOCK_TIMEOUT", 0.0)
    local = PathManager.get_local_path(WEIGHTS)
    with file_lock(local), pytest.raises(DownloadError, match=r"weights\.pkl\.lock"):
        PathManager.get_local_path(WEIGHTS, force=True)
    assert any("Waiting" in message for _, message in log())


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress(server, is_terminal, monkeypatch, log, capsys):
    monkeypatch.setattr("detectron2.utils._download.REPORT_INTERVAL", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    PathManager.get_local_path(WEIGHTS)
    assert any("100%" in message for _, message in log()) != is_terminal
    assert ("weights.pkl" in capsys.readouterr().err) == is_terminal


def test_short_addresses_of_onedrive(monkeypatch):
    asked = []
    monkeypatch.setattr(HTTPURLHandler, "_get_local_path", lambda self, path, **kwargs: asked.append(path) or "/local")
    assert PathManager.get_local_path("https://1drv.ms/u/s!abc") == "/local"
    assert asked[0].startswith("https://api.onedrive.com/v1.0/shares/u!")


def test_the_published_prefix(shared_dir):
    import json

    facts = json.loads((shared_dir / "facts" / "model_zoo_yaml.json").read_text())
    assert facts["url_prefix"] == Detectron2Handler.S3_DETECTRON2_PREFIX


@pytest.mark.parametrize(
    ("mode", "content"), [("w", ""), ("w", "größe"), ("w", "\udcff"), ("wb", b""), ("wb", b"\x00\xff")]
)
def test_atomic_write(tmp_path, mode, content):
    path = tmp_path / "new" / "folder" / "file"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if mode == "wb" else content.encode(errors="backslashreplace"))
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


class Full(io.BytesIO):
    """A file on a disk that has room for 100 bytes."""

    number = errno.ENOSPC

    def write(self, data):
        if self.tell() + len(data) > 100:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(data)


def test_a_full_disk_is_named(tmp_path):
    """With the file, and the free and needed bytes, also where the error is torch's own; the old file stays whole."""
    path = tmp_path / "x.pth"
    path.write_text("old")
    free = rf"{tmp_path}/x\.pth cannot be written, the disk is full: [\d.]+ MB are free at {tmp_path}"
    for tensors, size in (({"a": torch.zeros(10**6)}, "4.0"), ({}, None)):
        needed = None if size is None else int(4e6)
        text = free + (f" and {size} MB are needed" if size else r"\. Free some")
        with pytest.raises(OSError, match=text) as error, atomic_write(path, needed=needed):
            torch.save(tensors, Full())
        assert error.value.errno == errno.ENOSPC
        assert [p.name for p in tmp_path.iterdir()] == ["x.pth"] and path.read_text() == "old"
    with pytest.raises(RuntimeError, match="another"), atomic_write(path):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EDQUOT, r"\(quota\) is used up\. Free some space"), (errno.EFBIG, r"may not be so large there\. .*ulimit")],
)
def test_limits_other_than_a_full_disk_are_named(tmp_path, number, text):
    file = Full()
    file.number = number
    wanted = rf"x\.pth cannot be written, .*{text}.* another disk"
    with pytest.raises(OSError, match=wanted) as error, atomic_write(tmp_path / "x.pth", needed=4):
        torch.save({"a": torch.zeros(100)}, file)
    assert error.value.errno == number and not list(tmp_path.iterdir())
