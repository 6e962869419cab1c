"""What a source of images is: one YAML file each, a user's own as much as those of Medical Vision Universe."""
