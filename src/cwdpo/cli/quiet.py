"""Hide messages that libraries write for their own developers."""

import sys
import warnings


def quiet_libraries() -> None:
    """Hide deprecation notices of transformers, which this imports, and loading bars where they would fill a log."""
    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers(\.|$)")
    if not sys.stderr.isatty():
        disable_progress_bar()
