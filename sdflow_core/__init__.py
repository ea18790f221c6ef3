"""SDFlow as a library: records, faces, method, weights. Needs no orchestrator and no object-store client."""

__version__ = "0.1.0"
