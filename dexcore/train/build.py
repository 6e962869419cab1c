"""The model of a configuration."""

from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.train.config import ModelConfig


def build_model(config: ModelConfig) -> MaskedAutoencoder:
    """The autoencoder of a configuration, with weights from PyTorch's global generator."""
    encoder = DEXVisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        num_experts=config.num_experts,
        top_k=config.top_k,
        tau=config.tau,
        align=config.align,
        keep=config.keep,
        backend=config.backend,
    )
    model = MaskedAutoencoder(
        encoder,
        decoder_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=config.decoder_heads,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )
    model.set_grad_checkpointing(config.grad_checkpointing)
    return model
