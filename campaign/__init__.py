"""Fault campaigns: the same trials as `make test` runs a sample of, in the counts that docs/reliability.md reports."""
