"""Precision."""

import pytest
import torch

from dexcore.models.precision import autocast, compute_dtype, fast_bf16

_CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "bf16"), [("fp32", False), ("bf16", True), ("auto", fast_bf16(_CPU))])
def test_precision_decides_what_a_product_is_computed_in(precision, bf16):
    with autocast(_CPU, precision):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == compute_dtype(_CPU, precision) == (torch.bfloat16 if bf16 else torch.float32)
