"""Courses of runs, as their folders tell them: one that is well, and others of which something is to be said."""

from array import array
from collections import deque

import numpy as np

from dexcore.report.heldout_course import HeldOutCourse
from dexcore.report.history import SimilarityCourse
from dexcore.report.live import Course, Standing
from dexcore.report.live.course import RECENT

STEPS = 400


def course(tmp_path, **changes):
    """One of which nothing is to be said."""
    random = np.random.default_rng(0)
    loss = 0.5 + 0.02 * random.standard_normal(STEPS)
    columns = {"loss_self": loss, "images_per_second": np.full(STEPS, 16.0), "seconds_data": np.full(STEPS, 0.01)}
    found = Course(
        tmp_path,
        steps=STEPS,
        scalars={name: array("d", values) for name, values in columns.items()},
        load=deque([[[0.3, 0.3, 0.4]]] * RECENT, maxlen=RECENT),
        total_steps=500,
        batch_size=8,
        mlp="dex",
        similarity=SimilarityCourse(np.array([0, 200, 400]), (), np.array([[0.1], [0.7], [0.2]]), "kd"),
        standing=Standing.TRAINING,
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def with_losses(tmp_path, at, value):
    found = course(tmp_path)
    found.scalars["loss_self"][at] = value
    return found


def starving(tmp_path, **changes):
    return course(tmp_path, load=deque([[[0.5, 0.5, 0.0]]] * RECENT, maxlen=RECENT), **changes)


def apart(tmp_path, step, last):
    moments = SimilarityCourse(np.array([0, 200, step]), (), np.array([[0.1], [0.7], [last]]), "kd")
    return course(tmp_path, similarity=moments)


def waiting(tmp_path, seconds):
    found = course(tmp_path)
    found.scalars["seconds_data"] = array("d", [seconds] * STEPS)
    return found


def heldout(tmp_path, *losses):
    return course(tmp_path, heldout=HeldOutCourse(100 * np.arange(len(losses)), np.array(losses), 8))
