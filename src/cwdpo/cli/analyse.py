"""``cwdpo analyse``: what one step on one row does to the others, predicted and measured."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.progress import bars
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError
from cwdpo.records import check_place


def analyse(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, adapters, a run, or a hub name.", show_default=False)
    ],
    data: Annotated[Path, typer.Option("--data", help="Rows to train on and to observe.", show_default=False)],
    loss: Annotated[Literal["sft", "dpo", "cw_dpo"], typer.Option("--loss", help="The loss of a step.")] = "cw_dpo",
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of a trained row and an observed one.")] = 64,
    eta: Annotated[
        list[float] | None, typer.Option("--eta", help="SGD learning rate; may be repeated.  [default: 1e-3]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new directory for JSON and pictures.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="pi_ref.  [default: MODEL, as at the first step of stage 2]")
    ] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="stage2.beta.  [default: a recipe's]")] = None,
    floor: Annotated[
        str | None,
        typer.Option("--floor", help="stage2.cooling.floor, measured on the rows used.  [default: a recipe's]"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="stage2.cooling.temperature.  [default: a recipe's]")
    ] = None,
    lora: Annotated[int | None, typer.Option("--lora", min=1, help="Train fresh adapters of this rank.")] = None,
    directions: Annotated[
        int, typer.Option("--directions", min=0, help="Random directions for the kernel's estimate; 0 leaves it out.")
    ] = 64,
    image_root: ImageRootOption = None,
) -> None:
    """Take real SGD steps and compare each answer's change of log-prob with -eta A K G, the first-order prediction.

    Weights are put back after every step; nothing is trained, and MODEL is not changed.
    """
    from cwdpo.config import located_yaml
    from cwdpo.config.checking import problem_with
    from cwdpo.config.recipe import CoolingConfig, Stage2Config

    for option, value, needs in (("--beta", beta, "dpo"), ("--floor", floor, ""), ("--temperature", temperature, "")):
        if value is not None and out is None and loss not in (needs, "cw_dpo"):  # the pictures show all three
            raise ConfigError(f"{option} has no effect with --loss {loss}. Leave it out, or write --loss cw_dpo.")
    if floor is not None and (
        problem := problem_with(CoolingConfig, "floor", located_yaml.load_value(floor, "--floor"))
    ):
        raise ConfigError(f"--floor {problem}")
    etas = tuple(eta or [1e-3])
    beta = Stage2Config.beta if beta is None else beta
    temperature = CoolingConfig.temperature if temperature is None else temperature
    for name, value in (*(("--eta", eta) for eta in etas), ("--beta", beta), ("--temperature", temperature)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}, but must be a number > 0. Write for example {name} 1e-3.")
    if directions == 1:
        raise ConfigError("--directions 1 gives no error estimate. Write 64, or 0 to leave the kernel out.")
    if out is not None:
        check_place(out, is_directory=True)
    quiet_libraries()
    from cwdpo.analysis.run import Settings, analyse_model, show_analysis, write_analysis

    settings = Settings(
        model=model,
        data=data,
        image_root=image_root,
        loss=loss,
        pairs=pairs,
        etas=etas,
        reference=reference,
        beta=beta,
        floor=str(CoolingConfig.floor) if floor is None else floor,
        temperature=temperature,
        lora=lora,
        directions=directions,
    )
    with bars() as on_progress:
        analysis = analyse_model(settings, on_progress)
    show_analysis(analysis, Console())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for path in write_analysis(analysis, out):
            print(f"written: {path}")
