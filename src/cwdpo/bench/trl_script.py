"""A user's DPO script with TRL alone, from import to save: what a whole run of cwdpo is measured beside.

``python trl_script.py DIRECTORY EPOCHS``; the directory is one that :mod:`cwdpo.bench.whole_run` has filled. Nothing of
cwdpo is imported. As in the other measurements, the head scores answer tokens only, as it does on a GPU.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset, Image, List
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer import dpo_config, dpo_trainer, utils


def train(directory: Path, epochs: float) -> None:
    """Train as the directory's recipe does, and save the adapter."""
    settings = json.loads((directory / "settings.json").read_text(encoding="utf-8"))
    vars(utils)["_use_triton"] = lambda device: True  # by its private name: no setting asks for it
    rows = [json.loads(line) for line in (directory / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["images"] = [str(directory / name) for name in row["images"]]
    trainer = dpo_trainer.DPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(directory / "model", dtype="float32"),
        processing_class=AutoProcessor.from_pretrained(directory / "model"),
        train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
        args=dpo_config.DPOConfig(
            output_dir=str(directory / "trl"),
            num_train_epochs=epochs,
            beta=settings["beta"],
            bf16=False,  # on by default, on a CPU too
            max_length=None,
            disable_tqdm=True,
            activation_checkpointing=False,
            **settings["trainer"],
        ),
    )
    trainer.train()
    trainer.save_model(str(directory / "trl" / "final"))


if __name__ == "__main__":
    train(Path(sys.argv[1]), float(sys.argv[2]))
