"""What oneDNN runs on this CPU: bf16 needs vector instructions that some lack, where dexcore leaves it alone too."""

import pytest
import torch

from dexcore.nn.linear import ONEDNN_DTYPES

HAS_BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
DTYPES_HERE = [dtype for dtype in ONEDNN_DTYPES if HAS_BF16 or dtype != torch.bfloat16]
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="oneDNN has no bf16 on this CPU")
