"""What the operators' tests share."""

import pytest
import torch


@pytest.fixture
def use_simd():
    """Choose a SIMD variant by its number; begins with the base one, and the one in use before comes back."""
    before = torch.ops.maskray.set_simd(0)
    yield torch.ops.maskray.set_simd
    torch.ops.maskray.set_simd(before)
