"""What must not be lost: store, keys, journal, tables, lineage, consent, errors and configuration."""
