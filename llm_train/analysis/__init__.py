"""Measurements of gradients and of the curvature of a loss; torch and mathematics alone.

Training needs none of it: it is for notebooks, tests and the documentation.
"""
