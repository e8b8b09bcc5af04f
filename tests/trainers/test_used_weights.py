"""Every weight has a gradient for the ranks to share, and none of it is left where no rank used the weight."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cwdpo.trainers.used_weights import UsedWeights


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


class Branches(nn.Module):
    """Text goes through one layer, pictures through another first, and a third is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture, self.spare = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, values: torch.Tensor, *, pictured: bool = False) -> torch.Tensor:
        found: torch.Tensor = self.text(self.picture(values) if pictured else values)
        return found


def test_passes_with_and_without_a_part_share_a_backward_pass() -> None:
    torch.manual_seed(0)
    bare = Branches()
    wrapped, used = DistributedDataParallel(bare), UsedWeights()
    values = torch.ones(1, 2)
    for pictured in (True, False):
        bare.zero_grad()
        loss = wrapped(values).sum() + (wrapped(2 * values, pictured=True).sum() if pictured else 0)
        touched = used.touch(wrapped, loss)
        assert touched.item() == loss.item()
        touched.backward()
        assert all(weight.grad is not None for weight in bare.parameters())  # or DDP would wait at the next pass
        used.on_pre_optimizer_step()
        expected = Branches()
        expected.load_state_dict(bare.state_dict())
        (expected(values).sum() + (expected(2 * values, pictured=True).sum() if pictured else 0)).backward()
        for (name, ours), theirs in zip(bare.named_parameters(), expected.parameters(), strict=True):
            assert (ours.grad is None) is (theirs.grad is None), name
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)
        assert (bare.picture.weight.grad is None) is not pictured
        assert bare.spare.weight.grad is None


def test_a_gradient_of_zeros_of_ones_own_stays() -> None:
    """As an adapter's first matrix has it, while the second is 0."""
    bare = Branches()
    bare.text.weight.data.zero_()
    wrapped, used = DistributedDataParallel(bare), UsedWeights()
    used.touch(wrapped, wrapped(torch.ones(1, 2), pictured=True).sum()).backward()
    used.on_pre_optimizer_step()
    assert bare.picture.weight.grad is not None
    assert not bare.picture.weight.grad.any()


def test_other_models_are_left_alone() -> None:
    used, loss = UsedWeights(), torch.ones(())
    assert used.touch(Branches(), loss) is loss
    used.on_pre_optimizer_step()
    with torch.no_grad():
        assert used.touch(DistributedDataParallel(Branches()), loss) is loss
