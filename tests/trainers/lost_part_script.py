"""Run under torchrun by test_two_ranks: open stage 2, lose the second rank's part of the reference, open it again."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from cwdpo.data.reading import read_rows
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer


def opened(model: str, data: Path, out: Path) -> Any:
    args = CWDPOConfig(output_dir=str(out), use_cpu=True, report_to="none", max_steps=1)
    rows, processor = read_rows(data), load_processor(model)
    policy = load_policy(model, dtype="float32")
    trainer = CWDPOTrainer(policy, args=args, train_dataset=rows, processing_class=processor)
    trainer.measure_reference()
    return trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) / "out"
    first = opened(model, data, out)
    distributed.barrier()
    if distributed.get_rank() == 0:
        (out / "reference" / "part-001-00000.npz").unlink()
    distributed.barrier()
    second = opened(model, data, out)
    assert second.floor == first.floor
    assert second.reference._entries == first.reference._entries
    sys.stdout.write("the same floor and reference\n")
    sys.stdout.flush()
    distributed.barrier()  # so that neither leaves while the other still needs it
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
