"""The emoji example's model: LLaVA's real classes at a small size, and a tokenizer learned from the names."""

from build import OFF_TOPIC, PROMPTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 64, 16
"""Pixels of the model's picture and of its patches: 16 image tokens."""

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_CHAT_TEMPLATE = (
    "<s>{% for message in messages %}{{ message['role'] | upper }}:\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)


def build_processor(names: list[str], *, vocabulary: int = 1200) -> LlavaProcessor:
    """A LLaVA processor whose tokenizer learned its merges from the names; any other text is spelt in bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*names, *OFF_TOPIC, *PROMPTS * 5, *["USER:\nASSISTANT:\n"] * 5], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": SIDE, "width": SIDE}
    half = [0.5, 0.5, 0.5]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size=side, crop_size=side, image_mean=half, image_std=half, do_resize=True, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the default strategy drops again
        chat_template=_CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """An untrained model that fits the processor. Random weights: seed torch before."""
    tokenizer = processor.tokenizer
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=processor.image_token_id,
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**special, max_new_tokens=40)
    return model
