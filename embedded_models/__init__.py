"""The small models that ship with the package, under a licence of their own (NOTICE)."""
