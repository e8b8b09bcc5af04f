"""Tiny random checkpoints of real model families, so that tests run on real classes within seconds and no download.

- :mod:`tiny.models` writes a checkpoint: ``build("llava", directory)``. ``NAMES`` are the five families that every
  end-to-end test runs on, ``MORE_NAMES`` further ones, ``AWKWARD_NAMES`` those without a processor of their own.
- :mod:`tiny.prompts` loads such a checkpoint with weights that make mistakes visible (``load_model``) and makes prompts
  and batches for it (``make_prompt``, ``make_batch``).
- :mod:`tiny.families` holds the configurations, and :mod:`tiny.tokenizers` the tokenizers and chat templates. To add a
  family, write a ``Family`` there and a ``Spec`` here.

A test that only reads a checkpoint takes the fixture ``tiny`` of ``tests/conftest.py``, which builds each once a
session: ``tiny("llava")`` is its directory. A test that changes one builds its own:

    from tiny import build

    directory = build("llava", tmp_path / "llava", seed=3)
"""

from tiny.models import AWKWARD_NAMES, MORE_NAMES, NAMES, build

__all__ = ["AWKWARD_NAMES", "MORE_NAMES", "NAMES", "build"]
