"""On a GPU: its kernels at the sizes of real weights (`zoft doctor --gpu`: at small ones)."""

from __future__ import annotations

import secrets

import pytest
import torch

from zoft.planning.doctor.parity import Inputs, kernels_on, parity

pytestmark = pytest.mark.gpu
LARGE = {
    "lengths": (300_007,),
    "shapes": ((300_007,), (128, 4096), (33, 2049), (3, 9, 1024)),
    "product": (1024, 4096),
}


def test_large_inputs_have_the_bits_of_the_reference(gpu: torch.device) -> None:
    inputs = Inputs(secrets.randbits(32), **LARGE)  # type: ignore[arg-type]
    found = dict(parity(kernels_on(gpu), gpu, inputs))
    assert all(found.values()), (inputs.seed, [name for name, same in found.items() if not same])
