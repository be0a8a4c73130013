"""Files in tar archives, read by their place: an archive is neither unpacked nor read from its beginning.

Archives lie on this machine, or at an address of fsspec (`s3://`, `gs://`, `memory://`, `simplecache::s3://` ...). The
text `shard://ARCHIVE#OFFSET+LENGTH/NAME` stands for one file in an archive. `PathManager` opens it, so that it can be
the `file_name` of an image, or the name of a label map.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from detectron2.utils.file_io import PathHandler
from detectron2.utils.terminal import without_password

__all__ = ["SCHEME", "TarMember", "TarMemberHandler", "is_remote", "members_of", "read_range"]

SCHEME = "shard://"
"""How the address of a file in an archive begins."""
_ADDRESS = re.compile(rf"{SCHEME}(?P<archive>.+)#(?P<offset>\d+)\+(?P<length>\d+)/(?P<name>[^#]+)")
_REMOTE = re.compile(r"[A-Za-z][\w+.:-]*://")  # at the beginning: a folder on this machine may hold "http://" in a name
_LONGEST_NAME = 100  # in a header of the format ustar; a longer one has a header of its own


class TarMember(NamedTuple):
    """A file in a tar archive that is not compressed.

    Args:
        archive: path or address of the archive.
        name: of the file, as the archive has it.
        offset: where its content begins in the archive, in bytes.
        length: of the content, in bytes.

    Example:
        >>> TarMember("photos.tar", "a.jpg", 512, 99).address
        'shard://photos.tar#512+99/a.jpg'
        >>> TarMember.parse("shard://s3://bucket/photos.tar#512+99/a.jpg").archive
        's3://bucket/photos.tar'
    """

    archive: str
    name: str
    offset: int
    length: int

    @property
    def address(self) -> str:
        """The text that stands for the file."""
        return f"{SCHEME}{self.archive}#{self.offset}+{self.length}/{self.name}"

    @classmethod
    def parse(cls, address: str) -> "TarMember":
        """Return what an address stands for; a `ValueError` if it is none."""
        found = _ADDRESS.fullmatch(address)
        if found is None:
            raise ValueError(
                f"{address!r} is not the address of a file in an archive: {SCHEME}ARCHIVE#OFFSET+LENGTH/NAME"
            )
        return cls(found["archive"], found["name"], int(found["offset"]), int(found["length"]))

    def read(self) -> bytes:
        """Read the content.

        Returns:
            as many bytes as the `length`.

        Raises:
            FileNotFoundError: there is no such archive.
            OSError: the archive ends too early, or has another file in this place.
        """
        begin = self.offset - tarfile.BLOCKSIZE
        data = read_range(self.archive, begin, tarfile.BLOCKSIZE + self.length) if begin >= 0 else b""
        where = without_password(self.archive)
        if begin >= 0 and len(data) < tarfile.BLOCKSIZE + self.length:
            raise OSError(
                f"{where} ends before this file does, at byte {begin + len(data)}: it was not copied completely"
            )
        try:
            header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
        except tarfile.TarError:
            header = None
        if header is None or header.size != self.length or self._is_other_name(header.name):
            found = "no file" if header is None else f"{header.name!r} of {header.size} bytes"
            raise OSError(
                f"{where} has {found} at byte {self.offset}, where {self.name!r} of {self.length} bytes should be: the "
                "index was written for another archive"
            )
        return data[tarfile.BLOCKSIZE :]

    def _is_other_name(self, stored: str) -> bool:
        # Of long names, and of those in other letters, the last header has only a part.
        is_whole = self.name.isascii() and len(self.name) < _LONGEST_NAME
        return is_whole and stored != self.name


def is_remote(path: str) -> bool:
    """Whether a path is an address, of an archive or of a file in one."""
    return _REMOTE.match(path.removeprefix(SCHEME)) is not None


def read_range(path: str, begin: int, length: int) -> bytes:
    """Read a part of a file, which is shorter where the file ends; only this part is transferred.

    Args:
        path: of a file on this machine, or an address that fsspec knows.
        begin: first byte.
        length: number of bytes.

    Returns:
        the bytes.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"0123456789")
        ...     file.flush()
        ...     read_range(file.name, 2, 3)
        b'234'
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(length)
    import fsspec

    system, inner = fsspec.url_to_fs(path)
    return system.cat_file(inner, start=begin, end=begin + length)


def members_of(path: str) -> Iterator[TarMember]:
    """Go through a tar archive on this machine from its beginning; memory does not grow with the number of files.

    Args:
        path: of the archive.

    Yields:
        its files; folders and links are passed over.

    Raises:
        ValueError: the archive is compressed, or damaged.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg():
                    yield TarMember(path, member.name, member.offset_data, member.size)
                archive.members = []  # pyright: ignore  # which would hold all that were seen
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a readable tar archive without compression: {error}.") from None


class TarMemberHandler(PathHandler):
    """Opens `shard://` addresses for reading."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path!r} is in an archive, and can only be read, not opened with mode {mode!r}.")
        file = io.BytesIO(TarMember.parse(path).read())
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        raise ValueError(
            f"{path!r} is in an archive and has no path of its own: read it with PathManager.open(..., 'rb')."
        )

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            TarMember.parse(path).read()
        except (OSError, ValueError):
            return False
        return True

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False
