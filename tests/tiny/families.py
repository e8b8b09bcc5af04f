"""What the tiny checkpoints are made of, by family: the five that every end-to-end test runs on, and more.

``MORE_SPECS`` are families with something awkward in each. LLaVA-OneVision cuts images into tiles, InternVL shuffles
pixels, Mistral3 has a token after each row of patches, Gemma3 attends to images in both directions, PaliGemma to the
whole prompt, and Mllama attends to images across, so that images have one token in the prompt. The processor of
Mistral3 works only where torchvision is installed; that of PaliGemma has no chat template.

``AWKWARD_SPECS`` are families that the engine must know although their own processors cannot be loaded everywhere.
Qwen3.5 and LFM2-VL are hybrids: layers of linear attention or convolution carry state along the row. SmolVLM's
processor needs num2words, so its checkpoint holds that of Idefics3, which makes the same tensors. LFM2-VL's image
processor needs torchvision, so its checkpoint holds a tokenizer alone (see ``tiny.prompts`` for its images). FastVLM's
tower is a convolutional network: its batch norm computes other features in training mode, and it does not cast pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny.tokenizers import (
    GEMMA3,
    IDEFICS3,
    INTERNVL,
    LLAVA,
    LLAVA_ONEVISION,
    MISTRAL3,
    MLLAMA,
    PALIGEMMA,
    QWEN2_VL,
    QWEN3_VL,
    Family,
)

Ids = Callable[[str], int]

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attention_dropout": 0.0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Spec:
    """One model family in small."""

    model_class: str
    processor_class: str
    family: Family
    config: Callable[[Ids, dict[str, Any]], dict[str, Any]]
    """From token ids and the text configuration's common part to the whole configuration."""

    image_processor: dict[str, Any]
    """The image processor's configuration as the hub writes it, with ``image_processor_type``."""

    processor: dict[str, Any]
    """The processor's own settings."""

    video_processor: dict[str, Any] | None = None
    layout: str = "split"
    """``split``: preprocessor_config.json (and video_preprocessor_config.json where there is a video processor);
    ``joined``: processor_config.json with sections; ``preprocessor``: all in preprocessor_config.json."""


def _qwen_ids(ids: Ids) -> dict[str, Any]:
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


def _qwen2_vl(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    return {"text_config": {**text, "rope_parameters": _MROPE}, "vision_config": vision, **_qwen_ids(ids)}


def _qwen2_5_vl(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    return {"text_config": {**text, "rope_parameters": _MROPE}, "vision_config": vision, **_qwen_ids(ids)}


def _qwen3_vl(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 8,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    rope = {**_MROPE, "mrope_interleaved": True}
    return {
        "text_config": {**text, "head_dim": 12, "rope_parameters": rope},
        "vision_config": vision,
        **_qwen_ids(ids),
    }


def _llava(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **text},
        "vision_config": {"model_type": "clip_vision_model", **VISION, "projection_dim": 32},
        "image_token_index": ids("<image>"),
        "image_seq_length": 16,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _idefics3(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **text},
        "vision_config": {"model_type": "idefics3_vision", **VISION},
        "image_token_id": ids("<image>"),
        "pad_token_id": text["pad_token_id"],
        "scale_factor": 2,
    }


def _qwen_images(kind: str) -> dict[str, Any]:
    return {
        "image_processor_type": kind,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _qwen_videos(kind: str) -> dict[str, Any]:
    return {
        "video_processor_type": kind,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64},
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_frames": 4,
        "max_frames": 8,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


_CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
}
_IDEFICS3_IMAGES = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 32},
    "max_image_size": {"longest_edge": 32},
    "do_image_splitting": False,
}

SPECS = {
    "qwen2_vl": Spec(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLProcessor",
        QWEN2_VL,
        _qwen2_vl,
        _qwen_images("Qwen2VLImageProcessor"),
        {},
        layout="preprocessor",
    ),
    "qwen2_5_vl": Spec(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLProcessor",
        QWEN2_VL,
        _qwen2_5_vl,
        _qwen_images("Qwen2VLImageProcessor"),
        {},
        video_processor=_qwen_videos("Qwen2VLVideoProcessor"),
        layout="joined",
    ),
    "qwen3_vl": Spec(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLProcessor",
        QWEN3_VL,
        _qwen3_vl,
        _qwen_images("Qwen2VLImageProcessorFast"),
        {},
        video_processor=_qwen_videos("Qwen3VLVideoProcessor"),
        layout="split",
    ),
    "llava": Spec(
        "LlavaForConditionalGeneration",
        "LlavaProcessor",
        LLAVA,
        _llava,
        _CLIP_IMAGES,
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "idefics3": Spec(
        "Idefics3ForConditionalGeneration",
        "Idefics3Processor",
        IDEFICS3,
        _idefics3,
        _IDEFICS3_IMAGES,
        {"image_seq_len": 4},
    ),
}
"""The five by name."""

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _llava_onevision(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "qwen2", **text},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "patch_size": 16, "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "video_token_index": ids("<video>"),
        "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
    }


def _internvl(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    return {
        "text_config": {"model_type": "qwen2", **text},
        "vision_config": {"model_type": "internvl_vision", **vision},
        "image_token_id": ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
    }


def _mistral3(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "mistral", **text, "head_dim": 12, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **VISION, "head_dim": 16, "image_size": 64},
        "image_token_index": ids("[IMG]"),
        "spatial_merge_size": 2,
    }


def _gemma3(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    settings = {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 64, "final_logit_softcapping": 30.0}
    return {
        "text_config": {**text, **settings, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "mm_tokens_per_image": 4,
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
        "image_token_index": ids("<image_soft_token>"),
    }


def _paligemma(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "gemma", **text, "head_dim": 12},
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "image_token_index": ids("<image>"),
        "projection_dim": 48,
        "hidden_size": 48,
    }


def _mllama(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    text = {name: value for name, value in text.items() if name != "attention_dropout"}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "vision_output_dim": 64,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [1],
        "supported_aspect_ratios": [[1, 1]],
    }
    return {
        "text_config": {**text, "num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": vision,
        "image_token_index": ids("<|image|>"),
    }


MORE_SPECS = {
    "llava_onevision": Spec(
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionProcessor",
        LLAVA_ONEVISION,
        _llava_onevision,
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32]],
            **_HALF,
        },
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        video_processor={"video_processor_type": "LlavaOnevisionVideoProcessor", "size": {"height": 32, "width": 32}},
        layout="joined",
    ),
    "internvl": Spec(
        "InternVLForConditionalGeneration",
        "InternVLProcessor",
        INTERNVL,
        _internvl,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "max_patches": 1,
            **_HALF,
        },
        {"image_seq_length": 4},
        video_processor={"video_processor_type": "InternVLVideoProcessor", "size": {"height": 32, "width": 32}},
        layout="joined",
    ),
    "mistral3": Spec(
        "Mistral3ForConditionalGeneration",
        "PixtralProcessor",
        MISTRAL3,
        _mistral3,
        {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 48},
            "patch_size": {"height": 8, "width": 8},
            **_HALF,
        },
        {"patch_size": 8, "spatial_merge_size": 2},
    ),
    "gemma3": Spec(
        "Gemma3ForConditionalGeneration",
        "Gemma3Processor",
        GEMMA3,
        _gemma3,
        {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}, **_HALF},
        {"image_seq_length": 4},
    ),
    "paligemma": Spec(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaProcessor",
        PALIGEMMA,
        _paligemma,
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_seq_length": 16,
            **_HALF,
        },
        {},
    ),
    "mllama": Spec(
        "MllamaForConditionalGeneration",
        "MllamaProcessor",
        MLLAMA,
        _mllama,
        {
            "image_processor_type": "MllamaImageProcessor",
            "size": {"height": 32, "width": 32},
            "max_image_tiles": 1,
            **_HALF,
        },
        {},
    ),
}
"""The further ones by name."""


def _smolvlm(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    config = SPECS["idefics3"].config(ids, text)
    return {**config, "vision_config": {"model_type": "smolvlm_vision", **VISION}}


def _qwen3_5(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    config = SPECS["qwen3_vl"].config(ids, text)
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    }
    vision = {name: value for name, value in config["vision_config"].items() if name != "deepstack_visual_indexes"}
    rope = {**config["text_config"]["rope_parameters"], "partial_rotary_factor": 1.0}
    return {
        **config,
        "text_config": {**config["text_config"], **linear, "rope_parameters": rope},
        "vision_config": vision,
    }


def _lfm2_vl(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    text = {name: value for name, value in text.items() if name != "attention_dropout"}
    vision = {name: value for name, value in VISION.items() if name != "image_size"}
    return {
        "text_config": {"model_type": "lfm2", **text, "layer_types": ["conv", "full_attention"]},
        "vision_config": {"model_type": "siglip2_vision_model", **vision, "num_patches": 16, "vision_use_head": False},
        "image_token_id": ids("<|image_pad|>"),
        "projector_hidden_size": 32,
    }


def _fast_vlm(ids: Ids, text: dict[str, Any]) -> dict[str, Any]:
    stages = {"kernel_sizes": [3, 3], "in_channels": [8, 8], "out_channels": [8, 8], "strides": [2, 2]}
    ones = {"num_block_repeats": [1, 1], "expand_ratios": [1, 1], "depthwise_padding": []}
    # a quarter of the published width: 8 channels in the stem and in each stage, and 320 behind the last
    size = {
        "image_size": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 1.0,
        "hidden_dim": 320,
        "hidden_size": 320,
    }
    return {
        "text_config": {"model_type": "llama", **text},
        "vision_config": {"model_type": "efficientnet", **stages, **ones, **size, "hidden_act": "relu"},
        "image_token_index": ids("<image>"),
        "image_seq_length": 16,
    }


_IDEFICS3, _QWEN3_VL = SPECS["idefics3"], SPECS["qwen3_vl"]

AWKWARD_SPECS = {
    "smolvlm": Spec(
        "SmolVLMForConditionalGeneration",
        "Idefics3Processor",
        _IDEFICS3.family,
        _smolvlm,
        _IDEFICS3.image_processor,
        _IDEFICS3.processor,
    ),
    "qwen3_5": Spec(
        "Qwen3_5ForConditionalGeneration",
        "Qwen3VLProcessor",
        _QWEN3_VL.family,
        _qwen3_5,
        _QWEN3_VL.image_processor,
        _QWEN3_VL.processor,
        video_processor=_QWEN3_VL.video_processor,
    ),
    "lfm2_vl": Spec("Lfm2VlForConditionalGeneration", "", QWEN2_VL, _lfm2_vl, {}, {}),
    "fast_vlm": Spec(
        "FastVlmForConditionalGeneration",
        "LlavaProcessor",
        LLAVA,
        _fast_vlm,
        _CLIP_IMAGES,
        {"patch_size": 8, "vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
    ),
}
"""Those without a processor of their own, by name."""
