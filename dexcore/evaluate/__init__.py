"""What runs models over images: how well they reconstruct, what their features, experts and gradients are like."""
