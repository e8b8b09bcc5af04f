"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ImageRootOption: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--image-root",
        metavar="DIR",
        help="Where relative image paths start. May be repeated: the further directories are looked through too.  "
        "[default: DATA's directory]",
        show_default=False,
    ),
]
