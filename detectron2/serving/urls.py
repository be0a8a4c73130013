"""Download an image for somebody who is not trusted."""

import http.client
import ipaddress
import socket
import time
from urllib.parse import urlsplit

__all__ = ["fetch"]


def fetch(url: str, *, max_bytes: int, timeout: float, allow_private: bool = False) -> bytes:
    """Download a file, unless it is large, slow, or in a private network.

    The address is checked once the connection stands, so that a name cannot stand for another address by then.
    Redirections are not followed.

    Args:
        url: begins with http:// or https://.
        max_bytes: the most bytes of the file.
        timeout: seconds for all of it.
        allow_private: whether the server may be in this machine's own network, or be this machine.

    Returns:
        The content.

    Raises:
        OSError: there is no connection, or it is slower than `timeout`.
        ValueError: the URL is of another kind or leads into a private network; or the server does not answer with a
            file of that size.

    Example:
        >>> fetch("file:///etc/passwd", max_bytes=100, timeout=1.0)
        Traceback (most recent call last):
        ValueError: Expected an address that begins with http:// or https://, not file:.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        kind = f"{parts.scheme}:" if parts.scheme else "text without one"
        raise ValueError(f"Expected an address that begins with http:// or https://, not {kind}.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("The address has a user name or a password in it; leave them out.")
    until = time.monotonic() + timeout
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        connection.connect()
        if not allow_private:
            _refuse_private(connection.sock)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "detectron2"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"The server of the address answers with status {response.status}; expected 200.")
        return _read(response, connection.sock, max_bytes, until)
    except http.client.HTTPException as error:
        raise ValueError(f"The server of the address does not speak HTTP: {type(error).__name__}.") from None
    finally:
        connection.close()


def _refuse_private(connection: socket.socket) -> None:
    address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_global:
        raise ValueError("The address leads to a private network, which this service does not read from.")


def _read(response: http.client.HTTPResponse, connection: socket.socket | None, max_bytes: int, until: float) -> bytes:
    """Read what a server sends piece by piece, each with what is left of the time."""
    content = bytearray()
    while True:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("The server of the address is too slow.")
        if connection is not None and connection.fileno() >= 0:
            connection.settimeout(left)
        piece = response.read1(1 << 16)
        if not piece:
            return bytes(content)
        content += piece
        if len(content) > max_bytes:
            raise ValueError(f"The file at the address has more than {max_bytes / 1e6:g} MB.")
