"""Short names for the pre-trained backbones of the first Detectron: `catalog://ImageNetPretrained/FAIR/R-50-GN`."""

from detectron2.utils.file_io import Detectron2Handler, PathManager

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


class ModelCatalogHandler(Detectron2Handler):
    """Resolves `catalog://` paths through `ModelCatalog`."""

    PREFIX = "catalog://"

    def _url(self, path: str) -> str:
        return ModelCatalog.get(path[len(self.PREFIX) :])


PathManager.register_handler(ModelCatalogHandler())
