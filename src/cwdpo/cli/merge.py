"""``cwdpo merge``: adapters into a plain checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.contents import checkpoint_directory


def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, one of its stages, or a checkpoint.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The new directory.", show_default=False)],
    base: Annotated[str | None, typer.Option("--base", help="The base model, if it was moved.")] = None,
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge into a base that the adapters were not trained on.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Type of the merged weights; auto is the base's."),
    ] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base model.")
    ] = False,
) -> None:
    """Merge adapters into a plain checkpoint that from_pretrained and vLLM load."""
    source = checkpoint_directory(run)

    quiet_libraries()
    from cwdpo.models.merging import merge_adapter
    from cwdpo.report.card import write_merged_card

    merged = merge_adapter(
        source, out, base=base, dtype=dtype, any_base=any_base, trust_remote_code=trust_remote_code, say=print
    )
    write_merged_card(source, merged)
    print(f"merged {source} into {merged}")
