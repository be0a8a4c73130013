"""Download one file into the cache: resume it, verify it, and move it into place when it is complete.

While the file `name` is being downloaded, these files are in the same folder:

- `name.part`: the bytes that have arrived;
- `name.part.json`: the version of the file (`ETag`, `Last-Modified`); a download resumes only if it is known;
- `name.lock`: held by the process that downloads; an empty file that stays.
"""

import base64
import binascii
import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from iopath.common.file_io import file_lock, get_cache_dir
from tqdm import tqdm

from detectron2.utils.terminal import without_password

__all__ = ["DownloadError", "cache_folder", "cached_path", "fetch", "is_offline", "url_exists"]

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
LOCK_TIMEOUT = 3600.0  # seconds to wait for another process that downloads the same file
BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
REPORT_INTERVAL = 10.0  # seconds between two lines of the log
_CHUNK = 1 << 20
_HEADERS = {"User-Agent": "detectron2"}
_NO_PAGES = (
    ".pkl", ".pth", ".pyth", ".pt", ".safetensors", ".bin", ".json", ".zip", ".jpg", ".jpeg", ".png", ".webp", ".mp4"
)  # fmt: skip
_FORBIDDEN = '<>:"|?*\\' if os.name == "nt" else ""  # in names of files
_LONGEST_NAME = 240  # file systems allow 255 bytes; endings such as ".part.json" are added
# Its files are where other programs that share the cache look for them. Those of other hosts are in a folder of the
# host, so that two hosts may serve different files under one path.
_HOST_OF_PUBLISHED_WEIGHTS = "dl.fbaipublicfiles.com"


class DownloadError(OSError):
    """A remote file could not be downloaded.

    Args:
        message: what happened and what to do.
        url: address of the file.
        cached: path of the file in the cache.
        status: HTTP status with which the server refused; None for other causes.
    """

    def __init__(self, message: str, url: str = "", cached: str = "", status: int | None = None):
        super().__init__(message)
        self.url, self.cached, self.status = url, cached, status


# The cache


def is_offline() -> bool:
    """Return whether `DETECTRON2_OFFLINE` forbids the network."""
    return os.environ.get("DETECTRON2_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def cache_folder(cache_dir: str | None = None) -> str:
    """Return `cache_dir`, else `$DETECTRON2_CACHE`, else `$FVCORE_CACHE`, else `~/.torch/iopath_cache`."""
    folder = cache_dir or os.environ.get("DETECTRON2_CACHE") or os.environ.get("FVCORE_CACHE")
    return os.path.expanduser(folder or "~/.torch/iopath_cache")


def cached_path(url: str, folder: str) -> str:
    """Return the path of a remote file inside the folder of the cache, different for each address."""
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment not in ("", ".", "..")]
    is_same = segments and parts.path == "/".join(["", *segments]) and "/" not in parts.query
    segments = segments or ["index"]
    if parts.query:
        segments[-1] += f"?{parts.query.replace('/', '_')}"
    allowed = ["".join("_" if c in _FORBIDDEN else c for c in segment) for segment in segments]
    if len(segments[-1].encode()) > _LONGEST_NAME or not is_same or allowed != segments:
        segments = allowed
        name, ending = os.path.splitext(segments[-1][:40])
        segments[-1] = f"{name}_{hashlib.sha256(url.encode()).hexdigest()}{ending}"
    user, _, host = parts.netloc.rpartition("@")
    place = [host, user.partition(":")[0], "" if parts.scheme == "https" else parts.scheme]
    if place != [_HOST_OF_PUBLISHED_WEIGHTS, "", ""]:
        segments.insert(0, re.sub(r"[^\w.-]", "_", "_".join(part for part in place if part)))
    return os.path.join(folder, *segments)


def _check_address(url: str) -> None:
    """Refuse what is not an address, before anything is made of it."""
    odd = next((c for c in url if not "!" <= c <= "~"), "")
    try:
        why = "" if urlsplit(url).hostname and urlsplit(url).port != 0 else "it names no host"
    except ValueError:
        why = "behind :// it has no host, with a number as its port"
    if odd:
        why = f"it has the character {odd!r}, which it may not have; in paths write {quote(odd)} in its place"
    if why:
        text = without_password(url)
        raise DownloadError(f"{text} is not an address of a file: {why}.", text)


def fetch(
    url: str,
    force: bool = False,
    cache_dir: str | None = None,
    name_digits: str | None = None,
    sha256_digits: str | None = None,
) -> str:
    """Download a file unless it is in the cache.

    Args:
        url: an `http(s)://` or `ftp://` address.
        force: download the file even if it is in the cache.
        cache_dir: the cache; by default that of `cache_folder`.
        name_digits: hexadecimal digits in the file's name with which one of its digests should begin. It is not
            documented which one, so a mismatch is a warning and not an error.
        sha256_digits: hexadecimal digits with which the SHA-256 of the file must begin, from its name.

    Returns:
        The local path.

    Raises:
        DownloadError: the file could not be downloaded; the next attempt continues with the bytes that arrived.
    """
    _check_address(url)
    target = cached_path(url, cache_folder(cache_dir))
    if _size(target) and not force:
        return target
    if is_offline():
        url = without_password(url)
        raise DownloadError(
            f"{url} is not in the cache ({target} does not exist) and DETECTRON2_OFFLINE forbids downloads. On a "
            f"machine with network, run curl -L --create-dirs -o {os.path.basename(target)!r} {url!r}; then copy the "
            "file to that path, set DETECTRON2_CACHE to a folder that has it, or replace the address by the path of a "
            "local copy.",
            url,
            target,
        )
    folder = cache_folder(cache_dir)
    usable = get_cache_dir(folder)
    if usable != folder:
        text = "Downloads go to %s, because %s cannot be written to. Set DETECTRON2_CACHE to a folder of your own."
        logger.warning(text, usable, folder)
    target = cached_path(url, usable)
    with _only_one_process(url, target):
        if force or not _size(target):  # another process may have downloaded it
            _download(url, target, name_digits, sha256_digits)
    return target


@contextmanager
def _only_one_process(url: str, target: str) -> Iterator[None]:
    import portalocker

    lock = file_lock(target)  # creates the folder
    try:
        try:
            lock.acquire(timeout=0)
        except portalocker.LockException:
            logger.info("Waiting for another process that downloads %s", without_password(url))
            lock.acquire(timeout=LOCK_TIMEOUT)
    except portalocker.LockException as error:
        url = without_password(url)
        raise DownloadError(
            f"{url}: another process has held {target}.lock for {LOCK_TIMEOUT / 60:.0f} minutes. End it, or delete "
            "that file if no such process exists.",
            url,
            target,
        ) from error
    try:
        yield
    finally:
        lock.release()


# The download


def _download(url: str, target: str, name_digits: str | None, sha256_digits: str | None) -> None:
    """Fetch a file in several attempts. The count restarts after each attempt that brought new bytes."""
    failures, spoilt = 0, False
    most = _size(f"{target}.part")
    while True:
        try:
            announced = _attempt(url, target)
            _check_digests(url, f"{target}.part", announced, name_digits, sha256_digits)
            break
        except _TryAgain as error:
            if error.from_start:
                _discard(target)
                if spoilt:
                    raise _error(url, target, f"{error}, twice") from error
                spoilt = True
                continue
            failures = 0 if _size(f"{target}.part") > most else failures + 1
            most = max(most, _size(f"{target}.part"))
            if failures > len(BACKOFF):
                raise _error(url, target, f"{error}; gave up after {failures} attempts") from error
            delay = BACKOFF[max(failures, 1) - 1]
            logger.warning("%s: %s. Trying again in %.0f s.", without_password(url), error, delay)
            time.sleep(delay)
    os.replace(f"{target}.part", target)
    _discard(target)


def _attempt(url: str, target: str) -> dict[str, str]:
    """Fetch the missing bytes in one request, and return the digests that the server announces by algorithm."""
    part = f"{target}.part"
    offset, known = _size(part), _read_version(target)
    headers = {**_HEADERS, "Accept-Encoding": "identity"}
    # Resume only if the server can tell whether these bytes belong to the current file.
    if offset and known:
        headers["Range"] = f"bytes={offset}-"
        validator = known.get("etag", "")
        headers["If-Range"] = validator if validator and not validator.startswith("W/") else known.get("modified", "")
        headers = {key: value for key, value in headers.items() if value}
    try:
        with _open(url, target, headers) as response:
            resumed = _continues(response, offset, known)
            if not resumed:
                offset = 0
            length = response.headers.get("Content-Length", "")
            total = offset + int(length) if length.isdecimal() else None
            _check_kind(url, target, response)
            if total is not None and shutil.disk_usage(os.path.dirname(target)).free < total - offset:
                raise _error(url, target, disk_full(target, total - offset))
            logger.info("%s %s to %s", "Continuing" if resumed else "Downloading", without_password(url), target)
            with open(part, "ab" if resumed else "wb") as file:
                if not resumed:  # after the file was emptied, so that the version belongs to its bytes
                    Path(f"{part}.json").write_text(json.dumps(_version(response.headers)), encoding="utf-8")
                _copy(response, file, os.path.basename(target), offset, total)
                file.flush()
                os.fsync(file.fileno())
            announced = _announced_digests(response.headers)
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise _TryAgain(f"the connection broke ({error or type(error).__name__})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise _error(url, target, disk_full(target)) from error
        raise
    if not _size(part):
        raise _TryAgain("an empty file came", from_start=True)
    if total is not None and _size(part) != total:
        raise _TryAgain(f"{_size(part):,} of {total:,} bytes came", from_start=_size(part) > total)
    return announced


@contextmanager
def _open(url: str, target: str, headers: dict[str, str]) -> Iterator[Any]:
    try:
        response = urllib.request.urlopen(_request(url, headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # more bytes are here than the file has
                raise _TryAgain("the server has no such range", from_start=True) from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _TryAgain(f"the server answered {error.code} {error.reason}") from error
            raise _error(url, target, f"the server answered {error.code} {error.reason}", error.code) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionResetError, ConnectionAbortedError)):
            raise _TryAgain(f"no answer ({error.reason})") from error
        hint = "; check the network, and whether it needs a proxy (HTTPS_PROXY)"
        what = "the name of the host is not known" if isinstance(error.reason, socket.gaierror) else "no connection"
        raise _error(url, target, f"{what} ({error.reason}){hint}") from error
    with response:
        yield response


def _request(url: str, headers: dict[str, str], method: str = "GET") -> urllib.request.Request:
    """Return a request in which name and password are a header, which is not sent on to another host."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if not user or parts.scheme == "ftp":
        return urllib.request.Request(url, headers=headers, method=method)
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=headers, method=method)
    name, _, password = user.partition(":")
    token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _continues(response: Any, offset: int, known: Mapping[str, str]) -> bool:
    """Return whether the answer continues the partial file."""
    if getattr(response, "status", 200) != 206:
        return False
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = all(known.get(key, value) == value for key, value in _version(response.headers).items())
    if found is None or int(found[1]) != offset or not same:
        raise _TryAgain("the file on the server has changed", from_start=True)
    return True


def _check_kind(url: str, target: str, response: Any) -> None:
    """Refuse a web page, which login proxies and file hosts send instead of the file."""
    ending = os.path.splitext(urlsplit(url).path)[1].lower()
    is_page = response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers
    if is_page and ending in _NO_PAGES:
        raise _error(url, target, f"a web page came instead of the file (from {without_password(response.geturl())})")


def _copy(response: Any, file: BinaryIO, name: str, done: int, total: int | None) -> None:
    """Write the answer to the file, with a bar on a terminal and otherwise with lines in the log."""
    hidden = sys.stderr is None or not sys.stderr.isatty()
    last = time.monotonic()
    units: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with tqdm(desc=name, initial=done, total=total, disable=hidden, **units) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            done += len(chunk)
            if hidden and time.monotonic() - last >= REPORT_INTERVAL:
                last = time.monotonic()
                share = f" of {total / 1e6:.1f} MB ({100 * done // total}%)" if total else " MB"
                logger.info("%s: %.1f%s", name, done / 1e6, share)


# The partial file


class _TryAgain(Exception):
    """An attempt failed for a reason that may pass; `from_start` tells to discard the partial file."""

    def __init__(self, reason: str, from_start: bool = False):
        super().__init__(reason)
        self.from_start = from_start


def _version(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that identify the version of a remote file."""
    pairs = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    return {key: value for key, value in pairs.items() if value}


def _read_version(target: str) -> dict[str, str]:
    """Return the version of the partial file; empty if it is not known."""
    try:
        content = json.loads(Path(f"{target}.part.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _discard(target: str) -> None:
    for ending in (".part", ".part.json"):
        Path(target + ending).unlink(missing_ok=True)


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _announced_digests(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of the whole file that a server announces, as hexadecimal digits.

    Sources: RFC 9530 (`Repr-Digest`), RFC 1864 (`Content-MD5`, which covers only the part in a partial answer), and the
    `ETag` of Amazon S3, which is the MD5 of files that were uploaded in one piece without a customer key.
    """
    found: dict[str, str] = {}
    stated = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get("Repr-Digest", ""))
    if stated:
        found["sha256"] = stated[1]
    if headers.get("Content-MD5") and not headers.get("Content-Range"):
        found["md5"] = headers["Content-MD5"]
    try:
        found = {name: base64.b64decode(value, validate=True).hex() for name, value in found.items()}
    except binascii.Error:
        return {}
    etag = headers.get("ETag", "").strip('"').lower()
    own_key = "kms" in headers.get("x-amz-server-side-encryption", "")
    if headers.get("Server") == "AmazonS3" and re.fullmatch(r"[0-9a-f]{32}", etag) and not own_key:
        found["md5"] = etag
    return found


def _check_digests(
    url: str, path: str, announced: Mapping[str, str], name_digits: str | None, sha256_digits: str | None
) -> None:
    if not announced and not name_digits and not sha256_digits:
        return
    algorithms = ("md5", "sha1", "sha256") if name_digits else {*announced, *(["sha256"] if sha256_digits else [])}
    digests = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    found = {algorithm: digest.hexdigest() for algorithm, digest in digests.items()}
    for algorithm, expected in announced.items():
        if found[algorithm] != expected:
            reason = (
                f"the {algorithm} of the downloaded file is {found[algorithm]}, but the server announced {expected}"
            )
            raise _TryAgain(reason, from_start=True)
    if sha256_digits and not found["sha256"].startswith(sha256_digits):
        raise _TryAgain(
            f"the sha256 of the downloaded file is {found['sha256']}, but should begin as in its name {sha256_digits}",
            from_start=True,
        )
    if name_digits and not any(digest.startswith(name_digits) for digest in found.values()):
        logger.warning(
            f"{without_password(url)} is complete ({_size(path)} bytes), but none of its digests begins with the "
            f"{name_digits} in its name: {', '.join(f'{algorithm} {digest}' for algorithm, digest in found.items())}. "
            "If it does not load or gives bad results, it is not the published file."
        )


# Messages


def disk_full(
    target: str, needed: int | None = None, cure: str = "or set DETECTRON2_CACHE to a folder on another disk"
) -> str:
    """Return a text that says how much is free in the folder of a file, how much the file needs, and what to do."""
    folder = os.path.dirname(os.path.abspath(target))
    wanted = "" if needed is None else f" and {needed / 1e6:.1f} MB are needed"
    return (
        f"the disk is full: {shutil.disk_usage(folder).free / 1e6:.1f} MB are free at {folder}{wanted}. Free some "
        f"space, {cure}"
    )


def _error(url: str, target: str, reason: str, status: int | None = None) -> DownloadError:
    url, reason, kept = without_password(url), without_password(reason), _size(f"{target}.part")
    rest = f" The next attempt continues after the {kept:,} bytes that arrived." if kept else ""
    return DownloadError(
        f"{url} could not be downloaded: {reason}. You can also put a copy of the file at {target}.{rest}",
        url,
        target,
        status,
    )


def url_exists(url: str, cache_dir: str | None = None) -> bool:
    """Return whether the cache or the server has a file; False if the server cannot be reached."""
    try:
        _check_address(url)
        if _size(cached_path(url, cache_folder(cache_dir))):
            return True
        if is_offline():
            return False
        with urllib.request.urlopen(_request(url, _HEADERS, "HEAD"), timeout=TIMEOUT):
            return True
    except (OSError, http.client.HTTPException):
        return False
