"""Hide messages that libraries write for their own developers."""

import logging
import sys
import warnings


def quiet_libraries() -> None:
    """Hide deprecation notices of transformers, which this imports, and loading bars where they would fill a log."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers(\.|$)")
    # a filter, as deepspeed sets the level of its logger when it is imported
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to" not in record.getMessage())
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
