"""One file from the network into the cache: resumed where it was cut, checked, and moved into place when complete.

Beside a cached file ``name`` there may be, while it is on its way,

- ``name.part``: what has arrived;
- ``name.part.json``: which version of the file that is (``ETag``, ``Last-Modified``), without which nothing is resumed;
- ``name.lock``: held by the process that downloads; an empty file that stays.
"""

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from iopath.common.file_io import file_lock

from detectron2.utils._download_version import (
    TryAgain,
    announced_digests,
    check_digests,
    discard,
    read_version,
    size,
    version,
    write_version,
)

__all__ = ["DownloadError", "cache_folder", "cached_path", "fetch", "is_offline", "url_exists"]

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
LOCK_TIMEOUT = 3600.0  # seconds to wait for another process that downloads the same file
BACKOFF = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
REPORT_INTERVAL = 10.0  # seconds between two lines of the log
_CHUNK = 1 << 20
_LONGEST_NAME = 240  # file systems allow 255 bytes; endings such as ".part.json" are added
# Its files lie where other programs that share the cache look for them; those of other hosts in a folder of the host,
# so that two hosts may serve different files under one path.
_HOST_OF_PUBLISHED_WEIGHTS = "dl.fbaipublicfiles.com"


class DownloadError(OSError):
    """A remote file could not be had.

    Args:
        message: what happened and what to do.
        url: the address that was tried.
        cached: where the file would be kept.
        status: the HTTP status where a server refused; else None.
    """

    def __init__(self, message: str, url: str = "", cached: str = "", status: int | None = None):
        super().__init__(message)
        self.url, self.cached, self.status = url, cached, status


# ------------------------------------------------------------------------------------------------------------ the cache


def is_offline() -> bool:
    """Whether ``DETECTRON2_OFFLINE`` forbids the network."""
    return os.environ.get("DETECTRON2_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def cache_folder(cache_dir: str | None = None) -> str:
    """The folder of downloaded files.

    Args:
        cache_dir: the folder, if it is not to be the usual one.

    Returns:
        ``cache_dir``, else ``$DETECTRON2_CACHE``, else ``$FVCORE_CACHE``, else ``~/.torch/iopath_cache``.
    """
    folder = cache_dir or os.environ.get("DETECTRON2_CACHE") or os.environ.get("FVCORE_CACHE")
    return os.path.expanduser(folder or "~/.torch/iopath_cache")


def cached_path(url: str, folder: str) -> str:
    """Where the file at an address is kept.

    Args:
        url: the address.
        folder: of the cache.

    Returns:
        A path inside that folder that no other address shares.
    """
    parts = urlsplit(url)
    segments = [segment for segment in parts.path.split("/") if segment not in ("", ".", "..")] or ["index"]
    if parts.query:
        segments[-1] += f"?{parts.query.replace('/', '_')}"
    if len(segments[-1].encode()) > _LONGEST_NAME:
        segments[-1] = f"{segments[-1][:40]}_{hashlib.sha256(url.encode()).hexdigest()}"
    if parts.netloc != _HOST_OF_PUBLISHED_WEIGHTS:
        segments.insert(0, re.sub(r"[^\w.-]", "_", parts.netloc.rpartition("@")[2]))
    return os.path.join(folder, *segments)


def fetch(url: str, force: bool = False, cache_dir: str | None = None, name_digits: str | None = None) -> str:
    """Download a file unless the cache has it.

    Args:
        url: an ``http(s)://`` or ``ftp://`` address.
        force: download it anew.
        cache_dir: the cache; by default the one of :func:`cache_folder`.
        name_digits: hexadecimal digits in the file's name with which one of its digests may begin. Which one is not
            documented, so that there is a warning and no error when none does.

    Returns:
        The local path.

    Raises:
        DownloadError: it could not be downloaded; what has arrived is kept and continued the next time.
    """
    target = cached_path(url, cache_folder(cache_dir))
    if os.path.isfile(target) and not force:
        return target
    if is_offline():
        raise DownloadError(
            f"{url} is not in the cache, and DETECTRON2_OFFLINE is set, so that nothing is downloaded. It was looked "
            f"for at {target}. On a machine with network: curl -L --create-dirs -o {os.path.basename(target)!r} "
            f"{url!r}; then copy the file to that path, or let DETECTRON2_CACHE point to a folder that has it, or "
            "give the path of a local copy in the place of the address.",
            url,
            target,
        )
    target = cached_path(url, _writable(cache_folder(cache_dir)))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with _only_one_process(url, target):
        if force or not os.path.isfile(target):  # another process may have had it meanwhile
            _download(url, target, name_digits)
    return target


def _writable(folder: str) -> str:
    """The folder, or one for temporary files where this user may not write."""
    try:
        os.makedirs(folder, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "it is read-only"
    except OSError as error:
        reason = str(error)
    other = os.path.join(tempfile.gettempdir(), "iopath_cache")
    logger.warning(
        "Downloads go to %s, because %s cannot be written to (%s). Set DETECTRON2_CACHE to a folder of yours.",
        other,
        folder,
        reason,
    )
    return other


@contextmanager
def _only_one_process(url: str, target: str) -> Iterator[None]:
    import portalocker

    lock = file_lock(target)
    try:
        try:
            lock.acquire(timeout=0)
        except portalocker.LockException:
            logger.info("Waiting for another process that downloads %s", url)
            lock.acquire(timeout=LOCK_TIMEOUT)
    except portalocker.LockException as error:
        raise DownloadError(
            f"{url}: another process has held {target}.lock for {LOCK_TIMEOUT / 60:.0f} minutes. End it, or delete "
            "that file if there is no such process.",
            url,
            target,
        ) from error
    try:
        yield
    finally:
        lock.release()


# --------------------------------------------------------------------------------------------------------- the download


def _download(url: str, target: str, name_digits: str | None) -> None:
    """Fetch in as many attempts as it takes; the count starts again whenever an attempt brought something."""
    failures, spoilt = 0, False
    most = size(f"{target}.part")
    while True:
        try:
            announced = _attempt(url, target)
            check_digests(url, f"{target}.part", announced, name_digits)
            break
        except TryAgain as error:
            if error.from_start:
                discard(target)
                if spoilt:
                    raise _error(url, target, f"{error}, twice") from error
                spoilt = True
                continue
            failures = 0 if size(f"{target}.part") > most else failures + 1
            most = max(most, size(f"{target}.part"))
            if failures > len(BACKOFF):
                raise _error(url, target, f"{error}; gave up after {failures} attempts") from error
            delay = BACKOFF[max(failures, 1) - 1]
            logger.warning("%s: %s. Trying again in %.0f s.", url, error, delay)
            time.sleep(delay)
    os.replace(f"{target}.part", target)
    discard(target)


def _attempt(url: str, target: str) -> dict[str, str]:
    """Fetch what is missing in one request; returns the digests that the server announces, by algorithm."""
    part = f"{target}.part"
    offset, known = size(part), read_version(target)
    headers = {"User-Agent": "detectron2", "Accept-Encoding": "identity"}
    # What has arrived is continued only if it can be told whether it is of the file that is there now.
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
            total = _total_size(response, offset)
            _check_kind(url, target, response)
            _check_space(url, target, None if total is None else total - offset)
            logger.info("%s %s to %s", "Continuing" if resumed else "Downloading", url, target)
            with open(part, "ab" if resumed else "wb") as file:
                if not resumed:  # after the file was emptied: a version never belongs to older bytes
                    write_version(target, response.headers)
                _copy(response, file, os.path.basename(target), offset, total)
                file.flush()
                os.fsync(file.fileno())
            announced = announced_digests(response.headers)
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise TryAgain(f"the connection broke ({error or type(error).__name__})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise _error(url, target, _disk_full(target)) from error
        raise
    if total is not None and size(part) != total:
        raise TryAgain(f"{size(part):,} of {total:,} bytes came", from_start=size(part) > total)
    return announced


@contextmanager
def _open(url: str, target: str, headers: dict[str, str]) -> Iterator[Any]:
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # what is here is longer than the file
                raise TryAgain("the server has no such range", from_start=True) from error
            if error.code in (408, 425, 429) or error.code >= 500:
                raise TryAgain(f"the server answered {error.code} {error.reason}") from error
            raise _error(url, target, f"the server answered {error.code} {error.reason}", error.code) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionResetError, ConnectionAbortedError)):
            raise TryAgain(f"no answer ({error.reason})") from error
        hint = "; check the network, and whether it needs a proxy (HTTPS_PROXY)"
        what = "the name of the host is not known" if isinstance(error.reason, socket.gaierror) else "no connection"
        raise _error(url, target, f"{what} ({error.reason}){hint}") from error
    with response:
        yield response


def _continues(response: Any, offset: int, known: Mapping[str, str]) -> bool:
    """Whether the answer is the rest of what has arrived."""
    if getattr(response, "status", 200) != 206:
        return False
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    same = all(known.get(key, value) == value for key, value in version(response.headers).items())
    if found is None or int(found[1]) != offset or not same:
        raise TryAgain("the file on the server has changed", from_start=True)
    return True


def _total_size(response: Any, offset: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdecimal() else None


def _check_kind(url: str, target: str, response: Any) -> None:
    """Refuse a web page, as proxies with a login and file hosts send it in the place of the file."""
    ending = os.path.splitext(urlsplit(url).path)[1].lower()
    is_page = response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers
    if is_page and ending in (".pkl", ".pth", ".pyth", ".pt", ".safetensors", ".bin", ".json", ".zip"):
        raise _error(url, target, f"a web page came in the place of the file (from {response.geturl()})")


def _copy(response: Any, file: BinaryIO, name: str, done: int, total: int | None) -> None:
    with _progress(name, done, total) as advance:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            advance(len(chunk))


@contextmanager
def _progress(name: str, done: int, total: int | None) -> Iterator[Any]:
    """A function to call with each number of new bytes: draws a bar on a terminal, else writes to the log."""
    if sys.stderr is not None and sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
            yield bar.update
        return
    last = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= REPORT_INTERVAL:
            last = time.monotonic()
            share = f" of {total / 1e6:.1f} MB ({100 * done // total}%)" if total else " MB"
            logger.info("%s: %.1f%s", name, done / 1e6, share)

    yield advance


# ------------------------------------------------------------------------------------------------------------- messages


def _check_space(url: str, target: str, needed: int | None) -> None:
    if needed is not None and shutil.disk_usage(os.path.dirname(target)).free < needed:
        raise _error(url, target, _disk_full(target, needed))


def _disk_full(target: str, needed: int | None = None) -> str:
    folder = os.path.dirname(target)
    free = shutil.disk_usage(folder).free / 1e6
    wanted = "" if needed is None else f", {needed / 1e6:.1f} MB are needed"
    return (
        f"the disk is full: {free:.1f} MB are free at {folder}{wanted}. Make room, or set DETECTRON2_CACHE to a folder "
        "on another disk"
    )


def _error(url: str, target: str, reason: str, status: int | None = None) -> DownloadError:
    kept = size(f"{target}.part")
    rest = f" The {kept:,} bytes that came are kept, and the next attempt continues them." if kept else ""
    return DownloadError(
        f"{url} could not be downloaded: {reason}. It would be kept at {target}; a copy that you put there by other "
        f"means is used.{rest}",
        url,
        target,
        status,
    )


def url_exists(url: str, cache_dir: str | None = None) -> bool:
    """Whether the cache or the server has a file.

    Args:
        url: the address.
        cache_dir: as for :func:`fetch`.

    Returns:
        False as well when the server cannot be reached.
    """
    if os.path.isfile(cached_path(url, cache_folder(cache_dir))):
        return True
    if is_offline():
        return False
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "detectron2"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return True
    except OSError:
        return False
