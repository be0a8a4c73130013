"""The configs and trained weights that come with the project, by name."""

from .model_zoo import NotInModelZooError, get, get_checkpoint_url, get_config, get_config_file

__all__ = ["NotInModelZooError", "get", "get_checkpoint_url", "get_config", "get_config_file"]
