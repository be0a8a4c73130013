"""What can go wrong while one config is merged into another.

Every problem of a merge is collected, and all of them are reported by one exception.
"""

__all__ = ["ConfigError", "ConfigTypeError", "UnknownConfigKeyError"]


class UnknownConfigKeyError(KeyError, AssertionError):
    """A file, a list or another config names a key that does not exist.

    Both base classes are there because yacs raises the one for files and the other for command lines.
    """

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would print the quoted repr


class ConfigTypeError(ValueError):
    """A value does not have the type of the default that it would replace."""


class ConfigError(UnknownConfigKeyError, ConfigTypeError):
    """Unknown keys and wrong types in one merge."""
