"""A run that is followed while it trains: what its files say so far, what to do about it, and a screen of both."""

from dexcore.report.live.advice import Advice, advise
from dexcore.report.live.course import Course, Follower, Standing
from dexcore.report.live.screen import screen

__all__ = ["Advice", "Course", "Follower", "Standing", "advise", "screen"]
