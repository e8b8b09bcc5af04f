"""Special tokens and chat templates of the further families."""

from tiny_tokenizers import Family, chatml

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
