"""``python -m cwdpo`` and the command ``cwdpo``."""

import gc
import sys


def main() -> None:
    """Run the command line; Ctrl-C is polite from the first moment, also while the commands are imported."""
    try:
        from cwdpo.cli.app import main as run
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing was begun.", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    try:
        run()
    finally:
        gc.freeze()  # as it ends, Python would search all that was imported for cycles, for some seconds


if __name__ == "__main__":
    main()
