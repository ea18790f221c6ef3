"""Editors compared: what they are trained on, how they are swept, what is measured, and what probes read."""
