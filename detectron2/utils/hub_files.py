"""Files of the Hugging Face hub at addresses `hf://OWNER/NAME/FILE`, through the hub's own client and cache.

Without `/FILE`, the file `model.safetensors`, as `detectron2 push` names the weights.
`OWNER/NAME@REVISION` names a branch, a tag or a commit; without it the default branch is taken. The client reads
`HF_ENDPOINT`, `HF_HOME` and `HF_TOKEN`. `DETECTRON2_OFFLINE` and `HF_HUB_OFFLINE` keep it to its cache.
"""

import importlib.util
import os
import re
from typing import IO, Any

from iopath.common.file_io import PathHandler

from detectron2.utils._download import DownloadError, is_offline

__all__ = ["MODEL_FILE", "HuggingFaceHandler", "advice_of_hub", "cached_or_fetched", "repository_of"]

MODEL_FILE = "model.safetensors"
"""Name of the weights in the folder of a model."""

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(/(?P<file>[^?#]+))?")


def advice_of_hub(error: BaseException | None) -> str:
    """Return what to do about an answer of the hub that caused an error; empty where the hub did not answer."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 404:
            return "The hub has no model, version or file of that name: check it."
        if status in (401, 403):
            return "Check the name; if the model is gated or private, ask for access on its page and run hf auth login."
        error = error.__cause__ or error.__context__
    return ""


class HuggingFaceHandler(PathHandler):
    """Resolves `hf://OWNER/NAME/FILE` to the local copy of a file of the Hugging Face hub."""

    PREFIX = "hf://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        address = _ADDRESS.fullmatch(path)
        if address is None:
            raise ValueError(f"{path} is not of the form hf://OWNER/NAME/FILE or hf://OWNER/NAME@REVISION/FILE")
        name = address["file"] or MODEL_FILE
        if importlib.util.find_spec("huggingface_hub") is None:
            raise ImportError(f"{path} needs the package huggingface_hub: pip install 'detectron2[hub]'")
        from huggingface_hub import hf_hub_download

        try:
            return hf_hub_download(
                address["repo"],
                name,
                revision=address["revision"],
                force_download=force,
                local_files_only=is_offline(),
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        except Exception as error:  # a download that breaks off ends with an error of the HTTP library's own
            revision = f" --revision {address['revision']}" if address["revision"] else ""
            why = " ".join(str(error).split())[:300].rstrip(".")
            advice = advice_of_hub(error) or (
                f"On a machine with network, run hf download {address['repo']} {name}{revision} --local-dir . and give "
                "the path of the file instead."
            )
            raise DownloadError(f"{path} could not be had: {why}. {advice}", path) from error

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if set(mode) & set("wax+"):
            raise ValueError(f"{path} can be read, not written (mode {mode!r})")
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            return os.path.isfile(self._get_local_path(path))
        except DownloadError:
            return False

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


def repository_of(path: str) -> str | None:
    """Return `OWNER/NAME` or `OWNER/NAME@REVISION` of an address `hf://`; None for another path.

    Args:
        path: any path.

    Returns:
        The repository.

    Example:
        >>> repository_of("hf://me/shapes@v1/model.safetensors")
        'me/shapes@v1'
    """
    address = _ADDRESS.fullmatch(path)
    if address is None:
        return None
    return address["repo"] + (f"@{address['revision']}" if address["revision"] else "")


def cached_or_fetched(path: str) -> str | None:
    """Return the local copy of a file of the hub, without asking for one that is in the cache, or known to be absent.

    Args:
        path: an address `hf://`.

    Returns:
        The local path; None where the file cannot be had.

    Example:
        >>> cached_or_fetched("hf://me/shapes/README.md")  # doctest: +SKIP
    """
    address = _ADDRESS.fullmatch(path)
    if address is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(address["repo"], address["file"] or MODEL_FILE, revision=address["revision"])
    if found is not None:
        return found if isinstance(found, str) else None
    try:
        return HuggingFaceHandler()._get_local_path(path)
    except (DownloadError, ValueError):
        return None
