"""Generated images of all ten modalities."""

from dexcore.data.synthetic.mvu import SyntheticMVU, SyntheticSample, stored_label

__all__ = ["SyntheticMVU", "SyntheticSample", "stored_label"]
