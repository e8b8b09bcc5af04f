"""What is kept of the starting predictions: exact where all fits, bounded and honest where it does not."""

import math
from pathlib import Path

import pytest
import torch

from cwdpo.errors import UserError
from cwdpo.metrics import jensen_shannon, kl_divergence, total_variation
from cwdpo.probes import StartDistributions


def two(vocabulary: int = 200, positions: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(positions, vocabulary, generator=generator) * 3
    p = q + torch.randn(positions, vocabulary, generator=generator)
    return p.log_softmax(-1), q.log_softmax(-1)


def test_whole_distributions_are_exact() -> None:
    p, q = two()
    start = StartDistributions(1)
    start.record(0, q)
    moved = start.compare(0, p)
    torch.testing.assert_close(moved.tv.float(), total_variation(p, q), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(moved.js.float(), jensen_shannon(p, q), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(moved.kl.float(), kl_divergence(p, q), atol=1e-6, rtol=1e-5)
    best = q.argmax(-1)
    gains = [max(0.0, (p[t, best[t]].exp() - q[t, best[t]].exp()).item()) for t in range(7)]
    assert moved.to_argmax.tolist() == pytest.approx(gains, abs=1e-6)


def test_the_likeliest_tokens_and_the_rest_bound_tv_from_below() -> None:
    p, q = two()
    start = StartDistributions(4, budget=4 * 7 * 40)
    start.record(2, q)
    assert start.num_kept == 7 * 40
    moved = start.compare(2, p)
    for t in range(7):
        kept = sorted(range(200), key=lambda v: -q[t, v].item())[:40]
        rest_p, rest_q = (1 - sum(x[t, v].exp().item() for v in kept) for x in (p, q))
        coarse = (sum(abs(p[t, v].exp().item() - q[t, v].exp().item()) for v in kept) + abs(rest_p - rest_q)) / 2
        assert moved.tv[t].item() == pytest.approx(coarse, abs=1e-6)
        exact = total_variation(p[t], q[t]).item()
        assert coarse <= exact + 1e-6
        assert exact - coarse <= min(rest_p, rest_q) + 1e-6
        assert moved.js[t].item() <= jensen_shannon(p[t], q[t]).item() + 1e-6
        pairs = [(x.item(), y.item()) for x, y in zip(p[t, kept].exp(), q[t, kept].exp(), strict=True)]
        divergence = sum(x * math.log(x / y) for x, y in [*pairs, (rest_p, rest_q)])
        assert moved.kl[t].item() == pytest.approx(divergence, abs=1e-5)
        assert divergence <= kl_divergence(p[t], q[t]).item() + 1e-6
    assert (total_variation(p, q) - moved.tv).max() > 1e-4  # something was left out, so the bounds mean something


def test_a_rest_that_is_rounding_gives_no_infinite_kl() -> None:
    q = torch.full((1, 60), -60.0)
    q[0, :20] = math.log(1 / 20)
    start = StartDistributions(1, budget=16)
    start.record(0, torch.cat([q[:, :16] + math.log(20 / 16), q[:, 20:]], dim=-1))
    p = torch.cat([q[:, :16] + math.log(0.99 * 20 / 16), torch.full((1, 40), math.log(0.01 / 40))], dim=-1)
    found = start.compare(0, p).kl.item()
    assert found == pytest.approx(0.99 * math.log(0.99) + 0.01 * math.log(0.01 / 1e-7), rel=1e-3)


def test_memory_is_bounded_by_the_budget() -> None:
    start = StartDistributions(10, budget=5000)
    for row in range(10):
        start.record(row, torch.randn(20, 3000).log_softmax(-1))
    assert start.num_kept <= 5000
    few = StartDistributions(10, budget=10)
    few.record(0, torch.randn(20, 3000).log_softmax(-1))
    assert few.num_kept == 20 * 16  # never fewer than 16 tokens


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    p, q = two()
    start = StartDistributions(2, budget=1000)
    start.record(0, q)
    start.record(1, p)
    start.save(tmp_path / "start.npz")
    again = StartDistributions.load(tmp_path / "start.npz", 2)
    assert torch.equal(again.compare(0, p).tv, start.compare(0, p).tv)
    assert again.compare(1, p).tv.abs().max() < 1e-12
    with pytest.raises(UserError, match="start again in another --output_dir"):
        StartDistributions.load(tmp_path / "start.npz", 3)
    (tmp_path / "start.npz").write_bytes(b"PK broken")
    with pytest.raises(UserError, match="cannot be read"):
        StartDistributions.load(tmp_path / "start.npz", 2)
