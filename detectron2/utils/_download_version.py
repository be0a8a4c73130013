"""Whether what has arrived of a remote file is of the version that the server has, and whole.

A partial file ``name.part`` has a neighbour ``name.part.json`` with the version that it is of.
"""

import base64
import binascii
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping

__all__ = [
    "TryAgain",
    "announced_digests",
    "check_digests",
    "discard",
    "read_version",
    "size",
    "version",
    "write_version",
]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20


class TryAgain(Exception):
    """An attempt failed in a way that may pass; ``from_start`` when what has arrived is worth nothing."""

    def __init__(self, reason: str, from_start: bool = False):
        super().__init__(reason)
        self.from_start = from_start


def version(headers: Mapping[str, str]) -> dict[str, str]:
    """What tells one version of a remote file from another."""
    pairs = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
    return {key: value for key, value in pairs.items() if value}


def write_version(target: str, headers: Mapping[str, str]) -> None:
    with open(f"{target}.part.json", "w", encoding="utf-8") as file:
        json.dump(version(headers), file)


def read_version(target: str) -> dict[str, str]:
    """The version of the partial file; empty when it is not known."""
    try:
        with open(f"{target}.part.json", encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def discard(target: str) -> None:
    for path in (f"{target}.part", f"{target}.part.json"):
        if os.path.exists(path):
            os.remove(path)


def size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def announced_digests(headers: Mapping[str, str]) -> dict[str, str]:
    """Digests of the whole file that a server states, as hexadecimal digits.

    Sources: RFC 9530 (``Repr-Digest``), RFC 1864 (``Content-MD5``, which is of the part that a partial answer holds),
    and the ``ETag`` of Amazon S3, which is the MD5 of files that were uploaded in one piece without a key of one's own.
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


def check_digests(url: str, path: str, announced: Mapping[str, str], name_digits: str | None) -> None:
    if not announced and not name_digits:
        return
    algorithms = ("md5", "sha1", "sha256") if name_digits else tuple(announced)
    digests = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms}
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    found = {algorithm: digest.hexdigest() for algorithm, digest in digests.items()}
    for algorithm, expected in announced.items():
        if found[algorithm] != expected:
            raise TryAgain(
                f"the {algorithm} of what came is {found[algorithm]}, and the server announced {expected}",
                from_start=True,
            )
    if name_digits and not any(digest.startswith(name_digits) for digest in found.values()):
        logger.warning(
            "%s has all its %d bytes, but none of its digests begins with the %s in its name: md5 %s, sha1 %s, sha256 "
            "%s. If it does not load or its results are bad, it is not the published file.",
            url,
            size(path),
            name_digits,
            found["md5"],
            found["sha1"],
            found["sha256"],
        )
