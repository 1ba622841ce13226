"""The model: the LightningModule and its parts, one folder a YAML key.

Imports nothing, so that the mathematics below it can be read and used without Lightning.
"""
