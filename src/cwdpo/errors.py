"""Mistakes of the user: one line that says what to write instead."""


class UserError(ValueError):
    """Something the user gave cannot be used. The command line prints the message alone and exits with 2."""


class ConfigError(UserError):
    """A setting is wrong. The message says where it stands and what to write instead."""


class DataError(UserError):
    """A row or an image is wrong. The message names ``file:line`` and says what to write instead."""


LONGEST_SHOWN = 80
"""Characters of a value that a message shows."""


def shortened(text: str, longest: int = LONGEST_SHOWN) -> str:
    """A text as messages show it: what is too long keeps its beginning and its end.

    Example:
        >>> shortened("a" * 50 + "b" * 50, longest=20)
        'aaaaaaaaaaa...bbbbbb'
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def printable(text: str) -> str:
    r"""A text with control characters and half characters written out: a terminal would obey the first, and cannot show
    the others.

    Example:
        >>> printable("\x1b[31mred\n\ud800")
        '\\x1b[31mred\n\\ud800'
    """
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)
