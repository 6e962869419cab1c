"""Amounts as people say them."""


def duration(seconds: float) -> str:
    """A time in the unit that people would say it in; "?" where it is not known."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    if hours < 2:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
