"""What a training loop runs on: its processes, signals, checkpoints, configuration and device."""
