"""Measurements of gradients and of the curvature of a loss; torch and mathematics alone.

Training needs none of it but the noise scale: it is for notebooks, tests and the documentation.
"""

from llm_train.analysis.curvature import Eigenpair as Eigenpair
from llm_train.analysis.curvature import Loss as Loss
from llm_train.analysis.curvature import Point as Point
from llm_train.analysis.curvature import central_difference as central_difference
from llm_train.analysis.curvature import descend as descend
from llm_train.analysis.curvature import dot as dot
from llm_train.analysis.curvature import gradient as gradient
from llm_train.analysis.curvature import hvp as hvp
from llm_train.analysis.curvature import jvp as jvp
from llm_train.analysis.curvature import largest_eigenvalue as largest_eigenvalue
from llm_train.analysis.curvature import loss_of as loss_of
from llm_train.analysis.curvature import moved as moved
from llm_train.analysis.curvature import random_direction as random_direction
from llm_train.analysis.noise import estimates as estimates
from llm_train.analysis.noise import noise_scale as noise_scale
from llm_train.analysis.noise import relative_cost as relative_cost
