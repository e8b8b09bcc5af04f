"""A script for TRL's DPOTrainer on a vision-language model, of which one import was changed.

With TRL this line reads ``from trl import DPOConfig, DPOTrainer``. Everything else is TRL's:

    python examples/trl/dpo_vlm.py --dataset_name trl-lib/rlaif-v --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \
        --per_device_train_batch_size 2 --gradient_accumulation_steps 16 --bf16 --activation_checkpointing \
        --learning_rate 5e-6 --output_dir runs/rlaif_v --use_peft --lora_target_modules ".*language_model.*_proj"
"""

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config

from cwdpo import CWDPOConfig as DPOConfig
from cwdpo import CWDPOTrainer as DPOTrainer


def load_processor(name: str):
    """What transformers gives; where torchvision is missing, the same without videos."""
    try:
        return AutoProcessor.from_pretrained(name)
    except ImportError:
        return None  # the trainer loads it


def main(words: list[str] | None = None) -> DPOTrainer:
    """Train on the command line's settings, evaluate, and save."""
    parser = TrlParser((ScriptArguments, DPOConfig, ModelConfig))
    script, args, chosen = parser.parse_args_and_config(words)
    dtype = chosen.dtype if chosen.dtype in ("auto", None) else getattr(torch, chosen.dtype)
    model = AutoModelForImageTextToText.from_pretrained(
        chosen.model_name_or_path, dtype=dtype, attn_implementation=chosen.attn_implementation
    )
    dataset = load_dataset(script.dataset_name, name=script.dataset_config)
    evaluates = args.eval_strategy != "no"
    trainer = DPOTrainer(
        model,
        args=args,
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=dataset[script.dataset_test_split] if evaluates else None,
        processing_class=load_processor(chosen.model_name_or_path),
        peft_config=get_peft_config(chosen),
    )
    trainer.train()
    if evaluates:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model(args.output_dir)
    return trainer


if __name__ == "__main__":
    main()
