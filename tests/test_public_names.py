"""``import cwdpo`` is light, and everything it promises is there."""

import subprocess
import sys

import pytest

import cwdpo


def test_import_does_not_load_torch() -> None:
    code = "import cwdpo, sys; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("name", cwdpo.__all__)
def test_public_names_load(name: str) -> None:
    assert getattr(cwdpo, name) is not None


def test_the_contract_of_the_maths() -> None:
    assert callable(cwdpo.cooling.cooling_weight)
    assert callable(cwdpo.losses.cw_dpo_loss)
    assert callable(cwdpo.losses.constrained_sft_loss)


def test_a_typo_is_told() -> None:
    with pytest.raises(AttributeError, match="CWDPOTrainer"):
        cwdpo.CWDPOTrianer  # noqa: B018
