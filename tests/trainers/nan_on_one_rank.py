"""Run under torchrun by test_finite: the second rank's loss is NaN at step 2, and both ranks say so."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch

from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import SmoothSFTConfig, SmoothSFTTrainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, data, out = map(Path, sys.argv[1:])
    args = SmoothSFTConfig(
        output_dir=str(out / "out"),
        objective="plain",
        per_device_train_batch_size=2,
        max_steps=3,
        report_to="none",
        use_cpu=True,
    )
    trainer = SmoothSFTTrainer(
        load_policy(str(model)), args=args, train_dataset=read_rows(data), processing_class=load_processor(model)
    )
    compute = trainer.batch_loss

    def spoiled(*given: Any, **named: Any) -> Any:
        loss, values = compute(*given, **named)
        is_bad = trainer.state.global_step == 1 and int(os.environ["RANK"]) == 1
        return loss * (math.nan if is_bad else 1.0), values

    trainer.batch_loss = spoiled  # type: ignore[method-assign]
    try:
        trainer.train()
    except UserError as error:
        sys.stdout.write(f"\n{error}\n")
        sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)
