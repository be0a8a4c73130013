"""Short names for the pre-trained backbones of the first Detectron: `catalog://ImageNetPretrained/FAIR/R-50-GN`."""

from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

__all__ = ["ModelCatalog", "ModelCatalogHandler"]


class ModelCatalog:
    """Names of legacy weights and where they are published."""

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    # name behind "ImageNetPretrained/" -> path below the prefix
    C2_IMAGENET_MODELS = {
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
        "FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
        "FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
        "FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
    }

    @staticmethod
    def get(name: str) -> str:
        """Return the URL of what follows `catalog://`, such as `"ImageNetPretrained/MSRA/R-50"`.

        A name that is not in the catalog is a `KeyError`.
        """
        group, _, key = name.partition("/")
        if group != "ImageNetPretrained" or key not in ModelCatalog.C2_IMAGENET_MODELS:
            known = [f"ImageNetPretrained/{model}" for model in ModelCatalog.C2_IMAGENET_MODELS]
            raise KeyError(f"catalog://{name} is unknown; the catalog holds {known}.")
        return f"{ModelCatalog.S3_C2_DETECTRON_PREFIX}/{ModelCatalog.C2_IMAGENET_MODELS[key]}"


class ModelCatalogHandler(PathHandler):
    """Resolves `catalog://` paths through `ModelCatalog`."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(ModelCatalog.get(path[len(self.PREFIX) :]), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return PathManager.exists(ModelCatalog.get(path[len(self.PREFIX) :]), **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._exists(path, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
