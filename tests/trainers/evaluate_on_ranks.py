"""Run under torchrun by test_padded_evaluation: the first rank prints what both stages give for some rows."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from cwdpo.data.reading import read_rows
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, data, out = map(Path, sys.argv[1:])
    rows = read_rows(data)
    shared: dict[str, Any] = {"report_to": "none", "use_cpu": True, "per_device_eval_batch_size": 2, "engine": "plain"}
    found = {}
    for stage in (1, 2):
        for number in (1, 3, 4, 5):
            name, settings = f"stage{stage}-{number}", {**shared, "output_dir": str(out / f"stage{stage}-{number}")}
            given: dict[str, Any] = {"eval_dataset": rows[:number], "processing_class": load_processor(model)}
            policy = load_policy(str(model), dtype="float32")
            trainer: Any
            if stage == 1:
                trainer = SmoothSFTTrainer(policy, SmoothSFTConfig(**settings, objective="plain"), **given)
            else:
                crops = {"loss": {"sigmoid": 1.0, "image": 1.0}} if number == 5 else {}
                torch.manual_seed(1)
                start = load_policy(str(model), dtype="float32")
                with torch.no_grad():
                    for weight in start.parameters():
                        weight += 0.02 * torch.randn_like(weight)
                trainer = CWDPOTrainer(policy, start, CWDPOConfig(**settings, cooling_floor=-5.0, **crops), **given)
            metrics = trainer.evaluate()
            predicted = trainer.predict(rows[:number])
            found[name] = {
                "metrics": {
                    key: value for key, value in metrics.items() if "runtime" not in key and "second" not in key
                },
                "predictions": predicted.predictions[:, :stage].tolist(),
            }
            del found[name]["metrics"]["eval_model_preparation_time"]
    if os.environ["RANK"] == "0":
        sys.stdout.write(f"found {json.dumps(found)}\n")
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)
