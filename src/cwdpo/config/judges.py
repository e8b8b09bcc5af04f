"""How ``negatives.judge`` names a judge: a function, a built-in rule, or a server."""

from cwdpo.errors import ConfigError

RULES = ("same_words",)
"""Judges that need nothing but the texts."""


def is_server(judge: str) -> bool:
    """Whether a judge is a server, written as a URL."""
    return judge.startswith(("http://", "https://"))


def server_and_model(judge: str) -> tuple[str, str | None]:
    """The URL, and the model's name if there is one behind ``#``.

    Example:
        >>> server_and_model("http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct")
        ('http://127.0.0.1:8000/v1', 'Qwen/Qwen3-VL-8B-Instruct')
        >>> server_and_model("http://127.0.0.1:8000/v1")
        ('http://127.0.0.1:8000/v1', None)
    """
    url, _, model = judge.partition("#")
    return url, model or None


def checked_judge(judge: str | None) -> str | None:
    """``module:function``, the name of a rule, ``URL`` or ``URL#MODEL``; as given.

    Raises:
        ConfigError: it is none of these.
    """
    if judge is None or judge in RULES or is_server(judge):
        return judge
    if judge.count(":") != 1:
        raise ConfigError(
            f"negatives.judge is {judge!r}, but must have one colon: `module:function`. There are also "
            f"{', '.join(RULES)}, and a server as http://127.0.0.1:8000/v1#MODEL."
        )
    if not all(part.isidentifier() for part in judge.replace(":", ".").split(".")):
        raise ConfigError(f"negatives.judge is {judge!r}, but must name a function: `module:function`, or null.")
    return judge
