"""Hand a model over to lmms-eval, which runs public benchmarks; nothing of it is needed here."""

from pathlib import Path

from cwdpo.errors import UserError
from cwdpo.models.loading import load_config
from cwdpo.models.naming import find_checkpoint

TASKS = "pope,mmstar,ai2d"
"""Benchmarks by their names in lmms-eval: yes or no about objects, and two of multiple choice."""

INSTALL = "lmms-eval is not installed. Install it with:  pip install lmms-eval"

_NAMES = {
    **{name: name for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    **dict.fromkeys(("llava", "llava_next", "llava_onevision"), "llava_hf"),
}
"""lmms-eval's name for a model type; all others go through its vLLM backend."""


def harness_command(model: str, tasks: str = TASKS) -> list[str]:
    """The words after ``python`` that evaluate a checkpoint, a run's last stage or a hub model with lmms-eval.

    A UserError where it holds adapters, which lmms-eval does not load.

    Example:
        >>> from tempfile import mkdtemp
        >>> harness_command(mkdtemp())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        cwdpo.errors.UserError: ... is an empty directory, and a run or a model is needed. ...
    """
    found = find_checkpoint(model)
    path = str(Path(found).resolve()) if Path(found).is_dir() else found
    if (Path(path) / "adapter_config.json").is_file():
        raise UserError(
            f"{path} holds adapters, and lmms-eval loads whole models. Run `cwdpo merge {model} --out DIR`, and "
            "evaluate DIR."
        )
    kind = str(load_config(path).model_type)
    name = _NAMES.get(kind, "vllm")
    options = f"{'model' if name == 'vllm' else 'pretrained'}={path}"
    return ["-m", "lmms_eval", "--model", name, "--model_args", options, "--tasks", tasks, "--batch_size", "1"]
