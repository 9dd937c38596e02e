from __future__ import annotations

import os

import pytest

from zoft.system.host_memory import KEPT_KERNELS, keep_few_kernels


def test_few_compiled_products_are_kept_unless_the_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    keep_few_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == str(KEPT_KERNELS)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "512"
