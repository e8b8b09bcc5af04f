"""Hide messages that libraries write for their own developers."""

import sys
import warnings


def quiet_libraries() -> None:
    """Hide deprecation notices inside transformers, and its loading bars where they would fill a log file.

    Imports transformers, so it is called by commands that need it anyway.
    """
    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers(\.|$)")
    if not sys.stderr.isatty():
        disable_progress_bar()
