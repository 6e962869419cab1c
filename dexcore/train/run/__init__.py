"""What a run leaves on the disk: its folder, where it comes from, what it tells, what it costs, its card."""
