"""`fetch`: what strangers may have the service download, from a local server."""

import http.server
import socket
import threading
import time

import pytest

from detectron2.serving import urls
from detectron2.serving.urls import fetch


class Handler(http.server.BaseHTTPRequestHandler):
    """Files of the size in the path, and answers that are not what was asked for."""

    def do_GET(self):
        what = self.path.strip("/").partition("?")[0]
        if what == "moved":
            self.send_response(302)
            self.send_header("Location", "/5")
            self.end_headers()
        elif what == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(600):
                try:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
        elif what == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * int(what or 0))

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def get(url, **options):
    return fetch(url, **{"max_bytes": 1000, "timeout": 30.0, "allow_private": True, **options})


def test_an_empty_file(server):
    assert get(f"{server}/0") == b""


@pytest.mark.parametrize("size", [1, 999, 1000])
def test_a_file(server, size):
    assert get(f"{server}/{size}?a=b") == b"x" * size


@pytest.mark.parametrize(
    ("path", "message"),
    [("/1001", "more than 0.001 MB"), ("/moved", "status 302; expected 200"), ("/missing", "status 404")],
)
def test_other_answers(server, path, message):
    with pytest.raises(ValueError, match=message):
        get(server + path)


def test_slower_than_allowed(server):
    with pytest.raises(TimeoutError):
        get(f"{server}/slow", timeout=0.3)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "text without one"),
        ("photo.jpg", "text without one"),
        ("file:///etc/passwd", "not file:"),
        ("ftp://a.b/c.jpg", "not ftp:"),
        ("http:///c.jpg", "http://"),
        ("http://user:secret@a.b/c.jpg", "user name or a password"),
        ("http://a.b:port/c.jpg", "Port"),
    ],
)
def test_other_addresses(url, message):
    with pytest.raises(ValueError, match=message) as error:
        get(url)
    assert "secret" not in str(error.value)


def test_what_does_not_speak_http():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x01\x02 what?\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ValueError, match="does not speak HTTP"):
            get(f"http://127.0.0.1:{listener.getsockname()[1]}/a")


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        get(f"http://127.0.0.1:{port}/a")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_networks_are_not_asked(server, host):
    with pytest.raises(ValueError, match="private network"):
        get(server.replace("127.0.0.1", host) + "/5", allow_private=False)


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("10.1.2.3", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("8.8.8.8", False),
        ("2606:4700:4700::1111", False),
    ],
)
def test_what_a_private_network_is(address, is_private):
    class Connection:
        def getpeername(self):
            return address, 80

    if is_private:
        with pytest.raises(ValueError, match="private network"):
            urls._refuse_private(Connection())
    else:
        urls._refuse_private(Connection())
