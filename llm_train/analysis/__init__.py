"""Measurements of gradients and of the curvature of a loss; torch and mathematics alone.

Training needs none of it but the noise scale: it is for notebooks, tests and the documentation.
"""

from llm_train.analysis.curvature import (
    Eigenpair,
    Loss,
    Point,
    central_difference,
    descend,
    dot,
    gradient,
    hvp,
    jvp,
    largest_eigenvalue,
    loss_of,
    moved,
    random_direction,
)
from llm_train.analysis.noise import estimates, noise_scale, relative_cost

__all__ = [
    "Eigenpair",
    "Loss",
    "Point",
    "central_difference",
    "descend",
    "dot",
    "estimates",
    "gradient",
    "hvp",
    "jvp",
    "largest_eigenvalue",
    "loss_of",
    "moved",
    "noise_scale",
    "random_direction",
    "relative_cost",
]
