"""Drawings of the modalities by simple imaging physics, one file a modality; `dexcore.data.synthetic` numbers them."""
