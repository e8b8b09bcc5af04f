"""Who is measured: TRL and this package, in the forms a user can choose, each able to take one step on one batch."""

import copy
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias
from unittest import mock

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import Linear
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast, Qwen2_5_VLConfig, set_seed

from cwdpo.engine import FeatureCache, make_engine
from cwdpo.engine.lora import FusedLora
from cwdpo.engine.tree import TreeAttention, TreeEngine
from cwdpo.errors import UserError
from cwdpo.models.adapters import lora_targets
from cwdpo.models.loading import load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer


@dataclass(frozen=True, kw_only=True)
class VisionSize:
    """A Qwen2.5-VL vision tower. Widths count features, patches and attention windows count pixels a side."""

    depth: int
    full_attention: tuple[int, ...]
    """Layers that attend over the whole image; the others attend inside windows."""

    width: int
    mlp_width: int
    heads: int
    patch: int = 14
    window: int = 112

    merge: int = 2
    """Patches along each side that become one image token."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model of Qwen2.5-VL's shape."""

    vision: VisionSize
    depth: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False
    """Whether the head shares the token embeddings' weight."""

    lora_rank: int = 16


SIZES = {
    # every width an eighth of the 3B model's, every depth a ninth or an eighth; with this vocabulary the head's share
    # of the work for a token is the 3B model's
    "small": ModelSize(
        vision=VisionSize(depth=4, full_attention=(3,), width=160, mlp_width=428, heads=2),
        depth=4,
        width=256,
        mlp_width=1376,
        heads=4,
        kv_heads=1,
        vocabulary=2000,
        tied=True,
        lora_rank=2,
    ),
    "3b": ModelSize(
        vision=VisionSize(depth=32, full_attention=(7, 15, 23, 31), width=1280, mlp_width=3420, heads=16),
        depth=36,
        width=2048,
        mlp_width=11008,
        heads=16,
        kv_heads=2,
        vocabulary=151936,
        tied=True,
    ),
}
"""Qwen2.5-VL-3B, and a model of its proportions that a CPU can train. The narrower a model, the larger the share of
attention in its work, and the larger the vision tower's share, because its rows are longer."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a pair looks like, and how many a batch has. Lengths are in tokens."""

    image_side: int
    """Image tokens along each side of the square image."""

    shortest: int
    longest: int
    """Answers have between so many and so many tokens, end token included."""

    text: int = 32
    """The prompt's tokens beside the image's, the template's among them."""

    pairs: int = 2

    @property
    def image_tokens(self) -> int:
        return self.image_side**2


SETTINGS = {
    "ii": Setting(image_side=8, shortest=20, longest=20),
    "i256": Setting(image_side=16, shortest=32, longest=64),
    "i1024": Setting(image_side=32, shortest=32, longest=64),
}
"""64, 256 and 1,024 image tokens."""


_SEED = 0

_STEP_AWAY = 0.005
"""Standard deviation of what is added to every trained weight, so that policy and reference differ and the loss is not
ln 2 whatever the log-probs are."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant is given."""

    model: Any
    """A bare model; each contestant takes a copy."""

    processor: Any
    rows: Dataset
    """One batch."""

    lora_rank: int | None
    """Rank of adapters on the language model; None trains every weight, the vision tower's too."""

    checkpointing: bool
    directory: Path
    """Where trainers may write."""

    on_gpu: bool = False
    """Whether contestants run on a GPU, wherever the model is."""


class Contestant:
    """A trainer with one batch, ready to step."""

    def __init__(self, trainer: Any, batch: Any, context: Callable[[], AbstractContextManager[Any]] = nullcontext):
        """Take a trainer, ready to step but for activation checkpointing, and its batch; steps run in the context."""
        self.trainer, self.context = trainer, context
        self.device: torch.device = trainer.args.device
        self.batch = send_to_device(batch, self.device)
        if trainer.args.activation_checkpointing:
            trainer.model.activation_checkpointing_enable()
        generator = torch.Generator().manual_seed(_SEED)
        with torch.no_grad():  # the same noise for every contestant's trained weights, and none for their references
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    noise = torch.randn(weight.shape, generator=generator) * _STEP_AWAY
                    weight.add_(noise.to(weight.device, weight.dtype))
        trainer.model.train()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While open, the contestant is on its device; afterwards, if that is a GPU, in main memory: nine of them would
        not fit beside each other."""
        if self.device.type != "cuda":
            yield
            return
        for module in self.modules():
            module.to(self.device)
        try:
            yield
        finally:
            for module in self.modules():
                module.to("cpu")
            torch.cuda.empty_cache()

    def modules(self) -> list[nn.Module]:
        """The policy, and the reference where it is a model of its own."""
        ours = getattr(getattr(self.trainer, "reference", None), "model", None)
        reference = getattr(self.trainer, "ref_model", None) or ours
        return [module for module in (self.trainer.model, reference) if isinstance(module, nn.Module)]

    def loss(self) -> Tensor:
        """The forward pass: the loss, ``()``, with its graph."""
        with self.context(), self.trainer.compute_loss_context_manager():
            loss: Tensor = self.trainer.compute_loss(self.trainer.model, self.batch)
        return loss

    def step(self) -> float:
        """Forward and backward pass; the loss. The optimiser, which costs all contestants the same, is left out."""
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.trainer.model.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def reference_pass(self) -> None:
        """The pass over one batch that fills the reference cache, once a run. Not for TRL, which has none."""
        self.trainer.model.eval()
        with self.trainer.compute_loss_context_manager():
            self.trainer.engine.logprobs(self.trainer.model, self.batch)
        self.trainer.model.train()

    def weights(self) -> Iterator[Tensor]:
        """The tensors that are held between steps."""
        yield from self.trainer.model.parameters()
        yield from self.trainer.model.buffers()


def require_trl() -> Any:
    """The ``trl`` package, which is a development dependency; an error without it, or with a version not known here."""
    try:
        import trl.trainer.utils
    except ImportError as error:
        raise UserError("`cwdpo bench` measures TRL too, which is not installed. Run `pip install trl`.") from error
    package: Any = trl
    if not hasattr(package.trainer.utils, "_use_triton"):
        raise UserError("this version of TRL is not known here. Run `pip install trl==1.16.0`.")
    return package


def trl_dpo(task: Task, *, compact_head: bool) -> Contestant:
    """TRL's ``DPOTrainer``; a compact head scores answer tokens alone (TRL on CUDA), else every position (on a CPU)."""
    theirs = require_trl()
    set_seed(_SEED)  # of the adapters' first values
    model = copy.deepcopy(task.model)
    trainer = theirs.DPOTrainer(
        model=model,
        ref_model=None if task.lora_rank else copy.deepcopy(task.model).requires_grad_(False),
        args=theirs.DPOConfig(max_length=None, **_arguments(task)),
        train_dataset=task.rows,
        processing_class=task.processor,
        peft_config=_lora(model, task.lora_rank),
    )
    batch = trainer.data_collator([task.rows[i] for i in range(len(task.rows))])
    compact = partial(mock.patch.object, theirs.trainer.utils, "_use_triton", return_value=True)
    return Contestant(trainer, dict(batch), compact if compact_head else nullcontext)


def cw_dpo(
    task: Task,
    *,
    engine: Literal["tree", "plain"],
    reference: Literal["cached", "live"],
    features: bool = False,
    attention: TreeAttention | None = None,
    peft_layers: bool = False,
) -> Contestant:
    """This package's stage 2 without cooling, which is DPO.

    ``features`` keeps a frozen tower's image features. ``attention`` is the tree's; None leaves it to the self-check.
    ``peft_layers`` computes adapters as PEFT does.
    """
    kept = FeatureCache() if features else None
    set_seed(_SEED)  # of the adapters' first values
    model = copy.deepcopy(task.model)
    trainer = CWDPOTrainer(
        model,
        args=CWDPOConfig(cooling=False, engine=engine, reference=reference, **_arguments(task)),
        train_dataset=task.rows,
        processing_class=task.processor,
        peft_config=_lora(model, task.lora_rank),
        engine=TreeEngine(attention=attention, features=kept) if attention else make_engine(engine, features=kept),
    )
    if peft_layers:
        for layer in trainer.model.modules():
            if type(layer) is FusedLora:
                layer.__class__ = Linear  # type: ignore[assignment]  # as it was
    trainer.measure_reference()
    rows: Any = trainer.train_dataset
    collator: Any = trainer.data_collator
    return Contestant(trainer, collator([rows[i] for i in range(len(rows))]))


Quantity: TypeAlias = Literal["FLOPs", "saved activations", "time"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit, and how it was kept."""

    quantity: Quantity
    features: bool
    """Whether it is for kept features, or for the tree with a cached reference alone."""

    limit: float
    ratio: float | None = None
    """What was measured; None before."""

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.ratio <= self.limit


def targets(setting: str, *, lora: bool, checkpointing: bool) -> Sequence[Target]:
    """The limits for one setting of the bench.

    Example:
        >>> [(target.quantity, target.limit) for target in targets("ii", lora=True, checkpointing=True)]
        [('FLOPs', 0.35), ('time', 0.47)]
    """
    limits: list[tuple[Quantity, bool, float | None]] = [
        ("FLOPs", False, _FLOPS.get((lora, checkpointing), {}).get(setting)),
        ("FLOPs", True, _FLOPS_WITH_FEATURES.get(setting) if lora and not checkpointing else None),
        ("saved activations", False, None if checkpointing else _SAVED[lora]),
        ("time", False, _TIME[setting]),
    ]
    return [Target(quantity=of, features=kept, limit=limit) for of, kept, limit in limits if limit is not None]


def build_model(size: ModelSize, processor: Any, *, device: str = "cpu", dtype: str = "float32", seed: int = 0) -> Any:
    """A model of that size with random weights, made where it will run."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        auto: Any = AutoModelForImageTextToText
        return auto.from_config(build_config(size, processor), dtype=getattr(torch, dtype))


def word_tokenizer(vocabulary: Sequence[str]) -> Tokenizer:
    """Whole words, numbered as they come; one of them is ``<unk>``."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    return tokenizer


def build_processor(vision: VisionSize) -> Any:
    """Qwen2.5-VL's processor with a tokenizer of whole words, every image taken in its own size."""
    vocabulary = [*_SPECIAL, "user", "assistant", *(f"w{i}" for i in range(_WORDS))]
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(vocabulary),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=[token for token in _SPECIAL[:-1] if token not in ("<|im_end|>", "<|endoftext|>")],
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    sides = {"shortest_edge": 1, "longest_edge": 2**30}
    settings = {"size": sides, "patch_size": vision.patch, "temporal_patch_size": 2, "merge_size": vision.merge}
    images = {"image_processor_type": "Qwen2VLImageProcessor", **settings}
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", **settings}
    content = {"image_processor": images, "video_processor": videos, "processor_class": "Qwen2_5_VLProcessor"}
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        (Path(directory) / "processor_config.json").write_text(json.dumps(content), encoding="utf-8")
        return load_processor(directory)


def make_rows(setting: Setting, vision: VisionSize, *, seed: int = 0) -> Dataset:
    """One batch of random pairs, each with an image of noise, in the canonical form that TRL reads too."""
    generator = random.Random(seed)
    side = setting.image_side * vision.patch * vision.merge

    def noise(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))

    def words(count: int) -> str:
        return " ".join(f"w{generator.randrange(_WORDS)}" for _ in range(count))

    def answer() -> list[dict[str, str]]:
        length = generator.randint(setting.shortest, setting.longest)
        return [{"role": "assistant", "content": words(length - 1)}]  # the end token is one of them

    return Dataset.from_list(
        [
            {
                "images": [noise(seed + i)],
                "prompt": [{"role": "user", "content": words(setting.text - _TEMPLATE_TOKENS)}],
                "chosen": answer(),
                "rejected": answer(),
            }
            for i in range(setting.pairs)
        ]
    )


def _arguments(task: Task) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(dir=task.directory),
        "per_device_train_batch_size": len(task.rows),
        "per_device_eval_batch_size": len(task.rows),
        "activation_checkpointing": task.checkpointing,
        "bf16": task.model.dtype == torch.bfloat16,
        "use_cpu": not task.on_gpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "beta": 0.1,
        "seed": _SEED,
    }


def _lora(model: Any, rank: int | None) -> LoraConfig | None:
    if rank is None:
        return None
    targets = lora_targets(model, "language")
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")


_FLOPS = {
    # lora, checkpointing
    (False, False): {"ii": 0.44, "i256": 0.43, "i1024": 0.40},
    (True, False): {"ii": 0.39, "i256": 0.38, "i1024": 0.33},
    (True, True): {"ii": 0.35, "i256": 0.31, "i1024": 0.22},
}

_FLOPS_WITH_FEATURES = {"i1024": 0.20}  # LoRA without checkpointing
_SAVED = {False: 0.56, True: 0.62}  # by whether adapters train
_TIME = {"ii": 0.47, "i256": 0.45, "i1024": 0.45}


def build_config(size: ModelSize, processor: Any) -> Qwen2_5_VLConfig:
    """The model's configuration; its special tokens are the processor's."""
    ids = processor.tokenizer.convert_tokens_to_ids
    vision, half = size.vision, size.width // size.heads // 2
    side = half * 3 // 8  # rotary features of time, height and width: a quarter and twice three eighths, as published
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * side, side, side]}
    text = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "tie_word_embeddings": size.tied,
        "rope_parameters": rope,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": vision.depth,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_heads": vision.heads,
            "out_hidden_size": size.width,
            "patch_size": vision.patch,
            "window_size": vision.window,
            "spatial_merge_size": vision.merge,
            "fullatt_block_indexes": list(vision.full_attention),
        },
        tie_word_embeddings=size.tied,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )


_NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
_SPECIAL = (*(f"<|{name}|>" for name in _NAMES), "<unk>")

_WORDS = 900
"""Words that rows are made of; ids beyond them are never used, but the head scores them."""

# The end token ends a turn, with no newline behind it: TRL would score that newline, and losses could not agree.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ part['text'] }} "
    "{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)

_TEMPLATE_TOKENS = 7
"""Of a prompt: start, role, vision start and end, end; start and role of the answer."""
