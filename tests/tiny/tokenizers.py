"""Small byte-level BPE tokenizers with the special tokens and the chat templates of real model families."""

from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_CORPUS = [
    "a",
    "red",
    "circle",
    "left",
    "of",
    "the",
    "small",
    "blue",
    "square.",
    "the",
    "large",
    "green",
    "triangle",
    "is",
    "above",
    "a",
    "yellow",
    "star.",
    "What",
    "is",
    "in",
    "the",
    "picture?",
    "Describe",
    "the",
    "image.",
    "How",
    "many",
    "shapes",
    "are",
    "there?",
    "There",
    "are",
    "two",
    "circles",
    "and",
    "three",
    "squares",
    "in",
    "this",
    "image.",
    "You",
    "are",
    "a",
    "helpful",
    "assistant.",
    "user",
    "assistant",
    "system",
    "User:",
    "Assistant:",
    "USER:",
    "ASSISTANT:",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "car",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "",
]


@dataclass(frozen=True)
class Family:
    """What the tokenizer of a model family is: its special tokens, the ones with a role, and its chat template."""

    special: tuple[str, ...]
    eos: str
    """The tokenizer's end token."""

    pad: str
    template: str
    turn_end: str = ""
    """The token that ends an assistant turn in the template; empty where the family's template writes none."""

    bos: str | None = None
    unk: str | None = None
    prepend_bos: bool = False
    """Whether the tokenizer itself puts the bos token first (Llama, Gemma)."""

    extra: dict[str, str] = field(default_factory=dict)
    """Named tokens that the processor reads from the tokenizer, such as ``image_token``."""

    stop: tuple[str, ...] = ()
    """Tokens that end generation; by default the turn's end and eos."""


def build_tokenizer(family: Family, *, merges: int = 96) -> PreTrainedTokenizerFast:
    """A tokenizer that can encode any text (all 256 bytes), with ``merges`` learned merges on top."""
    special = list(family.special)
    core = Tokenizer(models.BPE(unk_token=family.unk))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + merges,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(_CORPUS)], trainer)
    if family.prepend_bos:
        assert family.bos is not None
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, core.token_to_id(family.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        unk_token=family.unk,
        extra_special_tokens=family.extra,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = family.template or None
    return tokenizer


def chatml(image: str, *, default_system: str | None) -> str:
    """ChatML turns, as Qwen-VL, InternVL and LLaVA-OneVision write them; content as a string or as parts."""
    system = ""
    if default_system:
        system = (
            "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + default_system + "<|im_end|>\n{% endif %}"
        )
    return (
        system + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

QWEN2_VL = Family(
    special=_QWEN_SPECIAL,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    turn_end="<|im_end|>",
    template=chatml(_QWEN_IMAGE, default_system="You are a helpful assistant."),
    stop=("<|im_end|>", "<|endoftext|>"),
)

QWEN3_VL = Family(
    special=_QWEN_SPECIAL,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    turn_end="<|im_end|>",
    template=chatml(_QWEN_IMAGE, default_system=None),
    stop=("<|im_end|>", "<|endoftext|>"),
)

LLAVA = Family(
    special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    unk="<unk>",
    prepend_bos=True,
    extra={"image_token": "<image>"},
    # like the published one: images first, a space after each text, and no end token after an assistant turn
    template=(
        "{% for message in messages %}"
        "{% if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif %}"
        "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
)

IDEFICS3 = Family(
    special=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5)),
    ),
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    pad="<|finetune_right_pad_id|>",
    turn_end="<end_of_utterance>",
    prepend_bos=True,
    # the bos token stands in the template although the tokenizer adds one too; no space follows "User:" before an image
    template=(
        "<|begin_of_text|>{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    stop=("<end_of_utterance>", "<|end_of_text|>"),
)

LLAVA_ONEVISION = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    turn_end="<|im_end|>",
    extra={"image_token": "<image>", "video_token": "<video>"},
    template=chatml("<image>\n", default_system=None),
    stop=("<|im_end|>", "<|endoftext|>"),
)

INTERNVL = Family(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    turn_end="<|im_end|>",
    extra={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    template=chatml("<IMG_CONTEXT>\n", default_system=None),
    stop=("<|im_end|>", "<|endoftext|>"),
)

MISTRAL3 = Family(
    special=(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "<pad>",
    ),
    bos="<s>",
    eos="</s>",
    pad="<pad>",
    unk="<unk>",
    turn_end="</s>",
    prepend_bos=True,
    template=(
        "<s>{% for message in messages %}"
        "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{% elif message['role'] == 'user' %}[INST]{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'system' %}[/SYSTEM_PROMPT]"
        "{% elif message['role'] == 'user' %}[/INST]{% else %}</s>{% endif %}{% endfor %}"
    ),
)

_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")

GEMMA3 = Family(
    special=(
        *_GEMMA_TOKENS,
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
        "<image_soft_token>",
    ),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    unk="<unk>",
    turn_end="<end_of_turn>",
    prepend_bos=True,
    extra={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    # a system turn goes before the first user turn's text, and the assistant is called "model"
    template=(
        "<bos>{% set turns = messages %}{% set prefix = '' %}"
        "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
        "{% set prefix = (messages[0]['content'] if messages[0]['content'] is string"
        " else messages[0]['content'][0]['text']) + '\n\n' %}{% endif %}"
        "{% for message in turns %}"
        "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{{ prefix if loop.first else '' }}"
        "{% if message['content'] is string %}{{ message['content'] | trim }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}"
        "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    stop=("<end_of_turn>", "<eos>"),
)

PALIGEMMA = Family(
    special=(*_GEMMA_TOKENS, "<image>"),
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
    unk="<unk>",
    extra={"image_token": "<image>"},
    template="",  # the published checkpoints have none: a prompt is a caption task, not a conversation
)

MLLAMA = Family(
    special=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    ),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    turn_end="<|eot_id|>",
    prepend_bos=True,
    template=(
        "<|begin_of_text|>{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    stop=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
)
