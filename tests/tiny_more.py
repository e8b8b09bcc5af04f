"""Further families for the tiny checkpoints, with what makes each of them awkward.

LLaVA-OneVision cuts images into tiles, InternVL shuffles pixels, Mistral3 has a token after each row of patches, Gemma3
attends to images in both directions, PaliGemma to the whole prompt, and Mllama attends to images across, so that images
have one token in the prompt. The processor of Mistral3 works only where torchvision is installed; that of PaliGemma has
no chat template.
"""

from typing import Any

from tiny_more_tokenizers import GEMMA3, INTERNVL, LLAVA_ONEVISION, MISTRAL3, MLLAMA, PALIGEMMA
from tiny_specs import VISION, Ids, Spec

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
"""The families by name."""
