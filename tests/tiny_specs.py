"""What the tiny checkpoints are made of: the five families that every end-to-end test runs on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_tokenizers import IDEFICS3, LLAVA, QWEN2_VL, QWEN3_VL, Family

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
