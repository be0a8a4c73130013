"""Open files at any address: local paths, `http(s)://`, `detectron2://` (the published weights), `hf://`.

Remote files are downloaded once and then served from the cache: `$DETECTRON2_CACHE`, else `$FVCORE_CACHE`, else
`~/.torch/iopath_cache`. An interrupted download resumes, gets its name when it is complete, and is made by one
process while the others wait. `DETECTRON2_OFFLINE=1` forbids any use of the network.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler as _IopathHTTPURLHandler
from iopath.common.file_io import OneDrivePathHandler as _IopathOneDrivePathHandler
from iopath.common.file_io import PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

from detectron2.utils._download import DownloadError, disk_full, fetch, is_offline, url_exists
from detectron2.utils.hub_files import HuggingFaceHandler

__all__ = [
    "Detectron2Handler",
    "DownloadError",
    "HTTPURLHandler",
    "OneDrivePathHandler",
    "PathHandler",
    "PathManager",
    "PathManagerBase",
    "atomic_write",
    "full_disk_named",
    "is_offline",
]

# Names of published weights end in the first digits of a digest, such as "model_final_f10217.pkl". Decimal digits only
# are rather a number of iterations, and letters only a word.
_NAME_WITH_DIGEST = re.compile(r"_(?=[a-f]*\d)(?=\d*[a-f])([0-9a-f]{6}|[0-9a-f]{32})\.\w+$")
# Names of the weights that PyTorch publishes end in the first digits of their SHA-256, see `torch.hub`.
_NAME_WITH_SHA256 = re.compile(r"-([0-9a-f]{8,64})\.pth$")


class HTTPURLHandler(_IopathHTTPURLHandler):
    """Downloads `http://`, `https://` and `ftp://` files into the cache folder."""

    PYTORCH_PREFIX = "https://download.pytorch.org/models/"

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        is_published = path.startswith(Detectron2Handler.S3_DETECTRON2_PREFIX)
        digits = _NAME_WITH_DIGEST.search(path) if is_published else None
        sha256 = _NAME_WITH_SHA256.search(path) if path.startswith(self.PYTORCH_PREFIX) else None
        return fetch(path, force, cache_dir, digits[1] if digits else None, sha256[1] if sha256 else None)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return url_exists(path)

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


class OneDrivePathHandler(_IopathOneDrivePathHandler):
    """Downloads short addresses of OneDrive, `https://1drv.ms/u/s!...`."""

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self.create_one_drive_direct_download(path), force=force, **kwargs)


class Detectron2Handler(PathHandler):
    """Resolves `detectron2://X` to the file `X` among the published model-zoo weights."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return PathManager.open(self._url(path), mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return PathManager.exists(self._url(path), **kwargs)

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path[len(self.PREFIX) :]


PathManager = PathManagerBase()
"""The path manager of this library: an instance, as in iopath. Register handlers for other schemes on it."""
for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler(), HuggingFaceHandler()):
    PathManager.register_handler(_handler)


@contextmanager
def full_disk_named(path: str | os.PathLike, needed: int | None = None) -> Iterator[None]:
    """Let an error of a full disk, or of a limit on files, in a `with` block say so, with the file and its size."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error  # torch.save raises an error of its own after that of the file
        while cause is not None and getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        number: int = getattr(cause, "errno", errno.ENOSPC)
        elsewhere = "or choose an output folder on another disk"
        if number == errno.ENOSPC:
            text = disk_full(os.fspath(path), needed, elsewhere)
        elif number == errno.EDQUOT:
            text = f"your share of the disk (quota) is used up. Free some space, {elsewhere}"
        else:
            text = f"a file may not be so large there. Raise the limit of the shell (ulimit -f), {elsewhere}"
        raise OSError(number, f"{os.fspath(path)} cannot be written, {text}") from error


@contextmanager
def atomic_write(
    path: str | os.PathLike, mode: str = "wb", manager: PathManagerBase | None = None, needed: int | None = None
) -> Iterator[IO[Any]]:
    """Write a file that appears under its name only when it is complete; its folder is created.

    A local file is written, in mode `"wb"` or `"w"` (UTF-8), under a temporary name in the same folder and moved over
    the target at the end of the block. If the block raises, the old file is unchanged. What is not Unicode, as names of
    files may be, is written as an escape. Paths of other schemes are opened directly. `needed` is the number of bytes
    that will be written, for the error of a full disk.
    """
    manager = PathManager if manager is None else manager
    target = os.fspath(path)
    if "://" in target:
        with manager.open(target, mode) as remote:
            yield remote
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    temporary = f"{target}.{os.getpid()}.tmp"
    with full_disk_named(target, needed):
        try:
            encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
            with open(temporary, mode, encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise
