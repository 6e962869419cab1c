"""Drawings of the modalities by simple imaging physics, one file a modality, for `dexcore.data.synthetic`."""
