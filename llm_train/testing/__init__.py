"""Helpers of the tests: a tiny run, and processes that can be killed."""
