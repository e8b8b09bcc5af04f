"""Names of models as users give them: a run, a directory, or a model of the Hugging Face hub. Loads no torch."""

import re
from pathlib import Path

from cwdpo.contents import CONFIGS, MODEL, RUN_OR_MODEL, Wanted, checkpoint_directory, refusal
from cwdpo.errors import UserError, path_advice


def find_checkpoint(name: str | Path) -> str:
    """What to load for a name: of a run its last finished stage, a directory as it is, a hub name as it is.

    Raises:
        UserError: nothing of this name can be loaded, as far as that can be said without the network.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(checkpoint_directory(path))
    local_directory(name, RUN_OR_MODEL)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and not _is_downloaded(str(name)):
        raise UserError(unreached(str(name), wanted=RUN_OR_MODEL))
    return str(name)


def local_directory(name_or_path: str | Path, wanted: Wanted = MODEL) -> Path | None:
    """The directory that is meant, or None for a hub name. Absolute: adapters write their base's path into their files.

    What reads like a path, or begins with a directory that is here and is no hub model that was downloaded before, must
    be a directory.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise refusal(path, wanted)
    text = str(name_or_path)
    if (
        hub := re.fullmatch(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?", text)
    ) is not None:
        raise UserError(f"{text} is the address of a page. Give the hub name: {hub[1]}.")
    if isinstance(name_or_path, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise refusal(path, wanted)
    if "/" in text and path.parent.is_dir() and not _is_downloaded(text):
        near = path_advice(text, otherwise=wanted.write)
        raise UserError(
            f"there is no directory {text}, though {path.parent} is one. {near} If it is a hub model, download it "
            f"first: `hf download {text}`."
        )
    return None


def unreached(name: str, *, gated: bool = False, wanted: Wanted = MODEL) -> str:
    """A message for a name that is not a directory, and not a hub model that can be reached."""
    why = _why_unreached(name, gated, wanted)
    return f"{name} is neither a directory here nor a hub model that can be reached. {why}"


def _why_unreached(name: str, gated: bool, wanted: Wanted) -> str:
    """Why no model of this name is found, and what may have been meant."""
    if gated:
        return "It is gated: accept its terms on the hub's page, and log in with `hf auth login`."
    here = path_advice(name)
    if "Did you mean" in here:
        return here
    if "/" not in name:
        return wanted.write
    if any(ord(sign) > 127 or sign in " '\"" for sign in name):
        return "A hub name has letters, digits, - _ and . only: `owner/model`."
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or where there is a network run "
            f"`hf download {name} --local-dir DIR`, and write DIR."
        )
    return (
        "Check the name and the connection, and for a private model log in with `hf auth login`; or where there is a "
        f"network run `hf download {name} --local-dir DIR`, and write DIR."
    )


def _is_downloaded(name: str) -> bool:
    """Whether a name is of a hub model that was downloaded before, here or as adapters."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in CONFIGS)
    except ValueError:  # it could be no hub name
        return False
