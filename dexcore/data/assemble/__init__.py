"""From a file's pixels to the images of a store: slices, and what is worth keeping."""
