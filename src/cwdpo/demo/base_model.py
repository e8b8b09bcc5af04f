"""The demo's vision-language model: LLaVA's real classes, half a million weights, a vocabulary of whole words."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from cwdpo.demo.captions import grammar_words
from cwdpo.demo.negatives import off_topic_words
from cwdpo.demo.scenes import IMAGE_SIZE
from cwdpo.demo.world import PROMPT

_PATCH = 8  # pixels; 32 x 32 pixels make 16 image tokens
_PIXEL_MEAN, _PIXEL_STD = 0.85, 0.25  # the light ground comes out near 0, so that shapes stand out
_INIT_STD = 0.06  # with the usual 0.02 a model this narrow needs thousands of steps before it looks at the picture
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
_CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def base_checkpoint() -> Path:
    """Directory of the shipped base model, which ``python -m cwdpo.demo.pretrain`` made.

    It loads with ``AutoModelForImageTextToText`` and ``AutoProcessor``; the weights are stored in bfloat16.
    """
    path = Path(str(files("cwdpo.demo"))) / "base"
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"the demo's base model is not at {path}; make it with `python -m cwdpo.demo.pretrain {path}`"
        )
    return path


def build_processor() -> LlavaProcessor:
    """A LLaVA processor with a word-level tokenizer and an image processor that needs no torchvision."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor: LlavaProcessor = LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=CLIPImageProcessorPil(
            size=side,
            crop_size=side,
            image_mean=[_PIXEL_MEAN] * 3,
            image_std=[_PIXEL_STD] * 3,
            do_resize=True,
            do_center_crop=False,
        ),
        tokenizer=_build_tokenizer(),
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the default strategy drops again
        chat_template=_CHAT_TEMPLATE,
    )
    return processor


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """An untrained model that fits the processor. Random weights: seed torch before."""
    tokenizer = processor.tokenizer
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=_INIT_STD,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=_vision_config(),
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=(IMAGE_SIZE // _PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, max_new_tokens=40)  # type: ignore[no-untyped-call]
    return model


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=_PATCH,
        projection_dim=64,
        initializer_range=_INIT_STD,
    )


def _build_tokenizer() -> Any:
    words = sorted({*grammar_words(), *off_topic_words(), *PROMPT.split()})
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with spaces
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        extra_special_tokens=["<user>", "<assistant>"],
        model_max_length=128,
    )
