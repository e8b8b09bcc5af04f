"""Mistakes of the user: one line that says what to write instead."""


class UserError(ValueError):
    """Something the user gave cannot be used. The command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """A setting is wrong. The message says where it stands and what to write instead."""


class DataError(UserError):
    """A row or an image is wrong. The message names ``file:line`` and says what to write instead."""
