"""`DEXBlock`: timm's ViT block with a DEX layer for its MLP."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import Attention, GluMlp, LayerNorm, Mlp, SwiGLU
from timm.models.vision_transformer import Block
from torch import nn

from dexcore.checks import check_number, check_whole
from dexcore.nn.mlp import DEXMlp


class DEXBlock(Block):
    """timm's ``Block``: x + attn(norm1(x)), then x + dex(norm2(x)), with LayerScale and drop-path as there.

    The parameters are timm's, in its order and with its defaults, then those of `DEXMlp` by keyword. ``forward``
    takes and returns [B, N, D]; ``mlp`` is the `DEXMlp`.

    ``mlp_layer`` may be None or timm's ``Mlp``, which ``VisionTransformer`` always passes: both mean `DEXMlp` with the
    keywords given here. Of timm's ``SwiGLUPacked`` (``GluMlp``) or ``SwiGLU`` it is a DEX layer of such experts, for
    which ``act_layer`` has to be SiLU. It may also be `DEXMlp` or a ``partial`` of it, whose keywords then go before.

    Raises:
        TypeError: ``mlp_layer`` is another MLP, or a size no number.
        ValueError: something that `DEXMlp` cannot honor, or a size out of range; the message names it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        mlp_layer: Callable[..., nn.Module] | None = Mlp,
        attn_layer: Any = Attention,
        depth: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        tau: float = 0.5,
        pool: str = "cls",
        align: str = "kd",
        mode: str = "experts",
        keep: str = "both",
        precision: str = "ieee",
        backend: str = "auto",
    ) -> None:
        check_whole("dim", dim, 1)
        check_whole("num_heads", num_heads, 1)
        # timm's Mlp takes a hidden width of 0 for none given.
        check_number("mlp_ratio", mlp_ratio, f"finite and at least 1 / {dim} (dim)", lambda x: 1 <= dim * x < math.inf)
        for name, rate in (("proj_drop", proj_drop), ("attn_drop", attn_drop), ("drop_path", drop_path)):
            check_number(name, rate, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        check_number("init_values", init_values or 0.0, "finite", math.isfinite)
        dex_mlp: Callable[..., nn.Module] = partial(
            DEXMlp,
            num_experts=num_experts,
            top_k=top_k,
            tau=tau,
            pool=pool,
            align=align,
            mode=mode,
            keep=keep,
            precision=precision,
            backend=backend,
        )
        if mlp_layer not in (None, Mlp):
            base = mlp_layer.func if isinstance(mlp_layer, partial) else mlp_layer
            if isinstance(base, type) and issubclass(base, DEXMlp):
                given = mlp_layer.keywords if isinstance(mlp_layer, partial) else {}
                dex_mlp = partial(base, **{**dex_mlp.keywords, **given})  # type: ignore[attr-defined]
            elif base in (GluMlp, SwiGLU):
                dex_mlp = partial(dex_mlp, director_layer=mlp_layer)
            else:
                raise TypeError(
                    "mlp_layer must be None, timm's Mlp, SwiGLUPacked or SwiGLU, or DEXMlp in a DEXBlock, "
                    f"got {mlp_layer!r}"
                )
        super().__init__(
            dim,
            num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_attn_norm=scale_attn_norm,
            scale_mlp_norm=scale_mlp_norm,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            attn_drop=attn_drop,
            init_values=init_values,
            drop_path=drop_path,
            act_layer=act_layer,
            norm_layer=norm_layer,
            mlp_layer=dex_mlp,  # type: ignore[arg-type]  # timm takes a partial too
            attn_layer=attn_layer,
            depth=depth,
            device=device,
            dtype=dtype,
        )
