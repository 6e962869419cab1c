"""A fine-tuned model on files: labels, masks at the images' own size, and pictures of what it looked at."""
