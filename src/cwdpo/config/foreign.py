"""Configurations of TRL, LLaMA-Factory, ms-swift and axolotl: recognised, and said in a recipe's words.

Each :class:`Dialect` is a table from a tool's names to ours. The same tables say what is meant where such a name, or
the name of such a value, stands in a recipe or on the command line. Sources: the tools' own documentation of their
arguments (TRL ``DPOConfig``, ``ModelConfig`` and ``ScriptArguments``; LLaMA-Factory ``hparams``; ms-swift command line
parameters; axolotl config reference).
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cwdpo.config import located_yaml
from cwdpo.errors import ConfigError, shortened

Tool: TypeAlias = Literal["TRL", "LLaMA-Factory", "ms-swift", "axolotl"]

_LARGEST = 1_000_000  # bytes
_STAGE2 = "stage2.trainer."

_NOT_CUT = "nothing is cut here, and a row that is longer than max_length stops the run"
_OWN_TEMPLATE = "the chat template is the processor's own"
_ROWS_AS_THEY_ARE = "rows are read as they are; the format is recognised"
_NOT_PACKED = "a prompt and its answers share one pass already; `trainer.max_tokens_per_batch` limits its memory"
_HELD_OUT = "name a file of held-out rows in data.eval"
_RANKS = "start them with `torchrun --nproc-per-node N -m cwdpo train RECIPE`, see docs/gpus.md"
_ON_DISK = "the reference is the model that the stage starts from, computed once and kept on disk: `stage2.reference`"

_NO_COUNTERPART: Mapping[str, str] = {
    **dict.fromkeys(("max_prompt_length", "max_completion_length", "truncation_mode", "truncation_strategy"), _NOT_CUT),
    **dict.fromkeys(("template", "chat_template", "chat_template_path", "system", "add_default_system"), _OWN_TEMPLATE),
    **dict.fromkeys(("dataset_dir", "dataset_config", "columns", "ranking", "field_messages"), _ROWS_AS_THEY_ARE),
    **dict.fromkeys(("padding_free", "packing", "sample_packing", "neat_packing", "use_liger_kernel"), _NOT_PACKED),
    **dict.fromkeys(("val_size", "split_dataset_ratio", "val_set_size", "dataset_test_split"), _HELD_OUT),
    **dict.fromkeys(("ref_model", "ref_model_adapters", "sync_ref_model", "reference_free"), _ON_DISK),
    **dict.fromkeys(("resume", "resume_from_checkpoint"), "run `cwdpo train RECIPE --resume`"),
    **dict.fromkeys(("dry_run", "dryrun", "validate_only"), "run `cwdpo check RECIPE`, which trains nothing"),
    **dict.fromkeys(("num_processes", "nproc_per_node", "nproc", "num_gpus", "n_gpus", "gpus", "devices"), _RANKS),
    **dict.fromkeys(("enabled", "enable", "disabled"), "to switch a section off, write null in its place"),
    **dict.fromkeys(("hub_token", "push_to_hub_token"), "put it into the environment, as HF_TOKEN"),
    "load_in_4bit": "write `model: {lora: {}, quantization: {bits: 4}}`",
    "load_in_8bit": "write `model: {lora: {}, quantization: {bits: 8}}`",
    "precompute_ref_batch_size": "write `stage2.reference_batch_size`",
    "cutoff_len": _NOT_CUT,
    "max_samples": "take a part of the file instead",
    "label_smoothing": "write `stage2: {loss: robust, loss_parameters: {robust_noise: ...}}`",
    "rpo_alpha": "write `stage2: {loss: {sigmoid: 1.0, nll: ALPHA}}`",
    "pref_ftx": "write `stage2: {loss: {sigmoid: 1.0, nll: FTX}}`",
    "lora_task_type": "it is always CAUSAL_LM",
    "use_rslora": "multiply lora.alpha by the square root of lora.r instead",
    "use_dora": "adapters are plain LoRA",
    "lora_bias": "biases stay frozen",
    "modules_to_save": "train all weights instead: leave model.lora out",
    "remove_unused_columns": "rows are always read whole",
}
"""Settings without a counterpart, in whatever tool, and what takes their place."""

_SILENT = {
    *("do_train", "do_eval", "overwrite_output_dir", "overwrite_cache", "preprocessing_num_workers", "plot_loss"),
    *("num_proc", "dataset_num_proc", "load_from_cache_file", "datasets", "split_batches", "disable_tqdm", "strict"),
}
"""Settings that say how a tool works and nothing of the experiment."""

_OLD_NAMES = {"warmup_ratio": "warmup_steps", "evaluation_strategy": "eval_strategy"}
"""Settings of ``TrainingArguments`` that have another name now; warm-up steps below 1 are a share."""

_OF_TRAINER: Mapping[str, object] = {
    f"{_STAGE2}num_train_epochs": 3,
    "trainer.per_device_train_batch_size": 8,
    "trainer.gradient_accumulation_steps": 1,
    "trainer.lr_scheduler_type": "linear",
    "trainer.warmup_steps": 0,
    "stage2.beta": 0.1,
}
"""Defaults of ``TrainingArguments``, which TRL and LLaMA-Factory keep, and of everybody's DPO."""

_LORA = {"lora_r": "model.lora.r", "lora_alpha": "model.lora.alpha", "lora_dropout": "model.lora.dropout"}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one tool names what a recipe sets."""

    tool: Tool
    marks: Collection[str]
    """Keys that only this tool has: a file with one of them is its."""

    keys: Mapping[str, str]
    """Its key, and ours by full name; other keys may be settings of ``TrainingArguments``, which all pass on."""

    kind: Sequence[str] = ()
    """Keys that say what is trained, such as the stage; they must say DPO."""

    defaults: Mapping[str, object] = field(default_factory=dict)
    """What it takes, by our full names, where its configuration is silent and a recipe would be something else."""


_DIALECTS = (
    Dialect(
        tool="LLaMA-Factory",
        marks=("finetuning_type", "pref_beta", "pref_loss", "template", "dataset_dir", "cutoff_len", "lora_target"),
        keys={
            **_LORA,
            "model_name_or_path": "model.name_or_path",
            "dataset": "data.train",
            "eval_dataset": "data.eval",
            "image_dir": "data.image_root",
            "media_dir": "data.image_root",
            "image_max_pixels": "data.max_pixels",
            "image_min_pixels": "data.min_pixels",
            "lora_rank": "model.lora.r",
            "lora_target": "model.lora.target_modules",
            "finetuning_type": "model.lora",
            "freeze_vision_tower": "model.freeze_vision",
            "flash_attn": "model.attn_implementation",
            "quantization_bit": "model.quantization.bits",
            "pref_beta": "stage2.beta",
            "pref_loss": "stage2.loss",
            "simpo_gamma": "stage2.loss_parameters.simpo_margin",
            "infer_dtype": "model.dtype",
            "trust_remote_code": "model.trust_remote_code",
        },
        kind=("stage",),
        defaults={
            **_OF_TRAINER,
            f"{_STAGE2}learning_rate": 5e-5,
            "model.lora.r": 8,
            "model.lora.alpha": 16,
        },
    ),
    Dialect(
        tool="ms-swift",
        marks=("rlhf_type", "tuner_type", "train_type", "freeze_vit", "attn_impl", "torch_dtype"),
        keys={
            **_LORA,
            "model": "model.name_or_path",
            "dataset": "data.train",
            "val_dataset": "data.eval",
            "tuner_type": "model.lora",
            "train_type": "model.lora",
            "lora_rank": "model.lora.r",
            "target_modules": "model.lora.target_modules",
            "freeze_vit": "model.freeze_vision",
            "torch_dtype": "model.dtype",
            "attn_impl": "model.attn_implementation",
            "quant_bits": "model.quantization.bits",
            "max_length": "data.max_length",
            "max_pixels": "data.max_pixels",
            "beta": "stage2.beta",
            "loss_type": "stage2.loss",
        },
        kind=("rlhf_type",),
        defaults={
            f"{_STAGE2}learning_rate": "1e-4 with LoRA, 1e-5 without",
            f"{_STAGE2}num_train_epochs": 3,
            "trainer.per_device_train_batch_size": 1,
            "trainer.lr_scheduler_type": "cosine",
            "trainer.warmup_steps": 0,
            "trainer.weight_decay": 0.1,
            "model.lora.r": 8,
            "model.lora.alpha": 32,
            "model.lora.dropout": 0.05,
            "stage2.beta": 0.1,
        },
    ),
    Dialect(
        tool="axolotl",
        marks=("base_model", "micro_batch_size", "rl", "sequence_len", "lora_target_linear", "adapter"),
        keys={
            **_LORA,
            "base_model": "model.name_or_path",
            "adapter": "model.lora",
            "lora_target_modules": "model.lora.target_modules",
            "lora_target_linear": "model.lora.target_modules",
            "load_in_4bit": "model.quantization",
            "load_in_8bit": "model.quantization",
            "sequence_len": "data.max_length",
            "rl_beta": "stage2.beta",
            "dpo_beta": "stage2.beta",
            "micro_batch_size": "trainer.per_device_train_batch_size",
            "num_epochs": f"{_STAGE2}num_train_epochs",
            "optimizer": "trainer.optim",
            "lr_scheduler": "trainer.lr_scheduler_type",
            "trust_remote_code": "model.trust_remote_code",
        },
        kind=("rl",),
        defaults={
            "model.lora": None,
            "model.freeze_vision": False,
            f"{_STAGE2}num_train_epochs": 1,
            "trainer.per_device_train_batch_size": 1,
            "trainer.gradient_accumulation_steps": 1,
            "trainer.lr_scheduler_type": "cosine",
            "stage2.beta": 0.1,
        },
    ),
    Dialect(
        tool="TRL",
        marks=("model_name_or_path", "dataset_name", "use_peft", "lora_target_modules", "precompute_ref_log_probs"),
        keys={
            **_LORA,
            "model_name_or_path": "model.name_or_path",
            "dataset_name": "data.train",
            "use_peft": "model.lora",
            "lora_target_modules": "model.lora.target_modules",
            "dtype": "model.dtype",
            "torch_dtype": "model.dtype",
            "attn_implementation": "model.attn_implementation",
            "load_in_4bit": "model.quantization",
            "load_in_8bit": "model.quantization",
            "bnb_4bit_quant_type": "model.quantization.quant_type",
            "use_bnb_nested_quant": "model.quantization.double",
            "trust_remote_code": "model.trust_remote_code",
            "max_length": "data.max_length",
            "beta": "stage2.beta",
            "loss_type": "stage2.loss",
            "loss_weights": "stage2.loss",
            "ld_alpha": "stage2.loss_parameters.ld_dpo_alpha",
            "precompute_ref_log_probs": "stage2.reference",
        },
        defaults={
            **_OF_TRAINER,
            f"{_STAGE2}learning_rate": 1e-6,
            "model.lora": None,
            "model.lora.r": 16,
            "model.lora.alpha": 32,
            "model.lora.dropout": 0.05,
            "model.freeze_vision": False,
        },
    ),
)

_LOSSES = {
    **{name: name for name in ("sigmoid", "ipo", "robust", "simpo", "apo_zero", "apo_down")},
    **{"bco_pair": "bco", "bco": "bco", "sft": "nll", "cw_dpo": "sigmoid", "dpo": "sigmoid"},
}
NEAR_LOSSES: Mapping[str, str] = {
    "dpo": "DPO is sigmoid",
    "cw_dpo": "CW-DPO is sigmoid, with cooling",
    "hinge": "Near it are sigmoid and ipo",
    "exo_pair": "Near it is robust",
    "nca_pair": "Near it is bco",
    "sppo_hard": "Near it is cal_dpo",
    "aot": "Near it is sigmoid",
    "aot_pair": "Near it is sigmoid",
    "aot_unpaired": "Near it is bco",
    "kto_pair": "Near it is bco",
    "kto": "Near it is bco",
    "orpo": "Near it is {simpo: 1, nll: 1}",
    "discopop": "Near it is sigmoid",
    "sigmoid_norm": "Near it is simpo, which has no reference",
}
"""Losses that have another name here or are not computed, and what to take in their place."""
_ATTENTION = {
    **{"fa2": "flash_attention_2", "flash_attn": "flash_attention_2", "flash_attention_2": "flash_attention_2"},
    **{"sdpa": "sdpa", "eager": "eager", "disabled": "eager", "auto": None, "fa3": "flash_attention_3"},
}
_DTYPES = {
    **{name: name for name in ("auto", "float32", "bfloat16", "float16")},
    **{"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"},
}
_ALL_LAYERS = ("all", "all-linear", "all_linear")
_OPTIMISERS = {"adam": "adamw_torch", "adamw": "adamw_torch", "adamw_hf": "adamw_torch"}

_OTHER_VALUES: Mapping[str, Mapping[str, str | None]] = {
    "dtype": _DTYPES,
    "attn_implementation": {**_ATTENTION, "flash": "flash_attention_2", "flash_attention": "flash_attention_2"},
    "loss": _LOSSES,
    "optim": _OPTIMISERS,
    "target_modules": dict.fromkeys(_ALL_LAYERS, "all-linear"),
}
"""By the last part of a setting's name: other words for its values, and ours."""

_OTHER_NAMES: Mapping[str, Collection[str]] = {
    "model.name_or_path": ("model_name", "model_path", "model_id", "pretrained_model_name_or_path"),
    "model.lora": ("peft", "peft_config", "use_lora", "lora_config"),
    "model.lora.r": ("rank",),
    "data.train": ("train_file", "train_files", "train_data", "train_path", "train_dataset", "data_path", "data_files"),
    "data.eval": ("eval_file", "eval_data", "validation_file", "validation", "val_file", "val", "valid", "dev", "test"),
    "data.image_root": ("image_folder", "images_dir", "image_path", "images", "img_dir"),
    "stage1": ("sft",),
    "stage2": ("dpo",),
    "stage2.loss_parameters.simpo_margin": ("simpo_gamma", "gamma"),
    "stage2.loss_parameters.dpop_penalty": ("dpop_lambda",),
    "stage2.cooling.temperature": ("tau",),
    "stage2.cooling.floor": ("l_floor",),
    "stage1.penalty": ("lambda_", "lam"),
    "output_dir": ("out", "output", "out_dir", "save_dir", "run_dir", "output_path"),
    "seed": ("random_seed", "random_state"),
}
"""Our settings by full name, and further words for them: short, of papers, or of tools without a dialect here."""


def our_name(word: str) -> str | None:
    """Our full name of a setting that was given by another word for it; None for a word that nobody has.

    Example:
        >>> our_name("tau"), our_name("lora_rank"), our_name("beta_2")
        ('stage2.cooling.temperature', 'model.lora.r', None)
    """
    if word in _NO_COUNTERPART:
        return None
    found = next((ours for ours, words in _OTHER_NAMES.items() if word in words), None)
    return found or next((one.keys[word] for one in _DIALECTS if word in one.keys), None)


_ADVICE = ("write", "run", "start", "put", "to switch", "take", "train", "multiply", "name")


def in_its_place(word: str) -> str:
    """What to do instead of a setting that has no counterpart, as it goes on after the name; empty for other words.

    Example:
        >>> in_its_place("template")
        ": the chat template is the processor's own. Take it out."
    """
    why = _NO_COUNTERPART.get(word)
    return "" if why is None else f": {why}.{'' if why.startswith(_ADVICE) else ' Take it out.'}"


def our_value(setting: str, word: str) -> str | None:
    """Our word for a value of a setting, which may be a full name.

    Example:
        >>> our_value("stage2.loss", "dpo"), our_value("loss", "DPOP")
        ('sigmoid', None)
    """
    return _OTHER_VALUES.get(setting.rpartition(".")[2], {}).get(word.strip().lower())


@dataclass(frozen=True)
class Translated:
    """A foreign configuration in a recipe's words."""

    tool: Tool
    settings: Mapping[str, Any]
    """Values by our full names, such as ``model.lora.r``."""

    renamed: Mapping[str, str]
    """Its keys that have a counterpart here, and ours."""

    without: Mapping[str, str] = field(default_factory=dict)
    """Its keys that have none, and what takes their place; empty where nothing does."""

    defaults: Mapping[str, object] = field(default_factory=dict)
    """What the tool takes for settings, by our full names, that its configuration does not name."""


def recognise(values: Mapping[str, object]) -> Dialect | None:
    """Whose configuration this is; None where it is nobody's that is known here.

    Example:
        >>> recognise({"stage": "dpo", "finetuning_type": "lora", "pref_beta": 0.1}).tool
        'LLaMA-Factory'
    """
    if isinstance(values.get("model"), Mapping) or isinstance(values.get("data"), Mapping):
        return None
    counts = [(sum(mark in values for mark in one.marks), -place) for place, one in enumerate(_DIALECTS)]
    most, place = max(counts)
    return _DIALECTS[-place] if most else None


def describe_foreign(dialect: Dialect, values: Mapping[str, object], name: str) -> str:
    """One line for someone who gave another tool's file ``name`` where a recipe was expected."""
    ours = {key: dialect.keys[key] for key in values if key in dialect.keys}
    known = [f"{key} is {name}" for key, name in ours.items() if not name.endswith(key.removeprefix("model_"))]
    without = [key for key in values if key in _NO_COUNTERPART and key not in dialect.keys]
    shown = f" There {', '.join(known[:3])}." if known else ""
    lost = f" Without a counterpart: {', '.join(without)}." if without else ""
    return (
        f"{name}: this is a configuration of {dialect.tool}, not a recipe of cwdpo. Make one from it: "
        f"`cwdpo init DATA --from {name}`.{shown}{lost}"
    )


def read_foreign(source: str, *, trainer_fields: Collection[str]) -> Translated:
    """Translate a file (YAML, JSON, or a shell script with the command), or the command itself as text.

    ``trainer_fields`` are the settings that ``TrainingArguments`` knows. A ConfigError where it is no configuration of
    a tool that is known here, or trains something else than preferences.
    """
    values = _values(source)
    dialect = recognise(values)
    if dialect is None:
        if isinstance(values.get("model"), Mapping):
            raise ConfigError(f"--from {source} is a recipe of cwdpo already. Give it to `cwdpo train`.")
        tools = ", ".join(one.tool for one in _DIALECTS)
        raise ConfigError(
            f"--from {shortened(source, 60)}: no configuration that is known here ({tools}). Leave --from out, and "
            "carry the settings over by hand."
        )
    for key in dialect.kind:
        what = str(values.get(key, "dpo"))
        if what not in ("dpo", "simpo", "ipo"):
            raise ConfigError(
                f"--from {shortened(source, 60)} has {key}: {what}, and cwdpo trains from preferences. Give the "
                "configuration of a DPO run."
            )
    return _translated(dialect, values, trainer_fields)


def _translated(dialect: Dialect, values: Mapping[str, Any], trainer_fields: Collection[str]) -> Translated:
    settings: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    without: dict[str, str] = {}
    given: set[str] = set()
    for key, value in values.items():
        if value is None or key in _SILENT or key in dialect.kind:
            continue
        ours = dialect.keys.get(key) or _passed_on(key, trainer_fields)
        if ours is None:
            without[key] = _NO_COUNTERPART.get(key, "")
            continue
        given.add(ours)
        try:
            found = _value(ours, key, value, values)
        except KeyError:
            without[key] = f"{ours} has no `{shortened(str(value), 60)}`"
            continue
        renamed[key] = ours
        if found is not _LEFT_OUT:
            settings[ours] = found
    if dialect.tool == "LLaMA-Factory" and isinstance(settings.get("model.lora.r"), int):
        settings.setdefault("model.lora.alpha", 2 * settings["model.lora.r"])  # its default
        given.add("model.lora.alpha")
    if settings.get("model.lora", {}) is None:
        settings = {name: found for name, found in settings.items() if not name.startswith("model.lora.")}
    defaults = {name: value for name, value in dialect.defaults.items() if name not in given}
    return Translated(dialect.tool, settings, renamed, without, defaults)


_LEFT_OUT = object()
"""A value that is what a recipe does anyway."""


def _passed_on(key: str, trainer_fields: Collection[str]) -> str | None:
    """Where a setting of ``TrainingArguments`` stands in a recipe; None where it is none."""
    if key in _NO_COUNTERPART:
        return None
    key = _OLD_NAMES.get(key, key)
    if key in ("seed", "output_dir"):
        return key
    if key in ("learning_rate", "num_train_epochs", "max_steps"):
        return _STAGE2 + key  # stage 1 has its own, as it learns something else
    return f"trainer.{key}" if key in trainer_fields else None


def _value(ours: str, key: str, value: Any, values: Mapping[str, Any]) -> Any:
    """A foreign value as ours; a KeyError where there is none."""
    text = str(value).strip().lower()
    if ours == "model.lora":
        uses = text in ("true", "lora", "qlora", "1")
        if not uses and text not in ("false", "full", "freeze", "0"):
            raise KeyError(text)
        return {} if uses else None
    if ours == "model.quantization":
        return {"bits": 4 if "4" in key else 8} if value is True else _LEFT_OUT
    if ours == "model.lora.target_modules":
        names = [name for part in (value if isinstance(value, list) else [value]) for name in str(part).split(",")]
        plain = [name.strip() for name in names if name.strip()]
        if value is False:
            return _LEFT_OUT
        if value is not True and not {*plain} & {*_ALL_LAYERS}:
            return plain
        # LLaMA-Factory and ms-swift leave out what is not the language model, unless its tower trains
        frozen = values.get("freeze_vision_tower", values.get("freeze_vit", True))
        return "language" if key in ("lora_target", "target_modules") and frozen else "all-linear"
    if ours == "model.dtype":
        return _DTYPES[text.removeprefix("torch.")]
    if ours == "model.attn_implementation":
        found = _ATTENTION[text]
        return _LEFT_OUT if found is None else found
    if ours == "stage2.loss":
        names = values.get("loss_type", value) if key == "loss_weights" else value
        names = names if isinstance(names, list) else [names]
        weights = values.get("loss_weights") or [1.0] * len(names)
        ours_names = [_LOSSES[str(name).lower()] for name in names]
        return ours_names[0] if len(names) == 1 else dict(zip(ours_names, weights, strict=False))
    if ours == "stage2.reference":
        return _LEFT_OUT if value else "live"
    if ours in ("data.train", "data.eval"):
        files = [name.strip() for part in (value if isinstance(value, list) else [value]) for name in part.split(",")]
        return files if len(files) > 1 else files[0]
    return value


def _values(source: str) -> Mapping[str, Any]:
    """Keys and values of a file or a command."""
    path = Path(source)
    is_command = " " in source.strip() and "--" in source
    if is_command or not source:
        return _arguments(source)
    if path.suffix == ".py":
        raise ConfigError(
            f"--from {source} is a Python script, which is not read. Change its import instead: "
            "`from cwdpo import CWDPOConfig, CWDPOTrainer`."
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"--from {source} is too large to be a configuration. Give the YAML file.")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"--from {source} cannot be read ({reason}). Give a YAML file or a command.") from None
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return located_yaml.load(text, source).values
    return _arguments(text)


def _arguments(text: str) -> Mapping[str, Any]:
    """The ``--key value`` pairs of a command, which may be one of several in a shell script."""
    lines = text.replace("\\\n", " ").splitlines()
    command = next((line for line in lines if "--" in line and not line.lstrip().startswith("#")), "")
    try:
        return dict(_pairs(shlex.split(command, comments=True)))
    except ValueError as error:
        raise ConfigError(f"--from: the command cannot be read: {error}. Close its quotes.") from None


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            continue
        name, equals, text = word[2:].partition("=")
        found = [text] if equals else []
        while not equals and position < len(words) and not words[position].startswith("--"):
            found.append(words[position])
            position += 1
        values = [located_yaml.load_value(one, f"--{name}") for one in found] or [True]
        yield name.replace("-", "_"), values[0] if len(values) == 1 else values
