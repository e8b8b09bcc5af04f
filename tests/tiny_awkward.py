"""Families that the engine must know although their own processors cannot be loaded everywhere.

Qwen3.5 and LFM2-VL are hybrids: layers of linear attention or convolution carry state along the row. SmolVLM's
processor needs num2words, so its checkpoint holds that of Idefics3, which makes the same tensors. LFM2-VL's image
processor needs torchvision, so its checkpoint holds a tokenizer alone (see ``tiny_prompts`` for its images).
"""

from typing import Any

from tiny_specs import SPECS, VISION, Ids, Spec
from tiny_tokenizers import QWEN2_VL


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
}
"""The families by name."""
