"""From a store to a batch: the keyed order, the datasets, the augmentation."""
