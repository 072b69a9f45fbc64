"""What every stage shares and the workflow may import: configuration, run identity, files, errors. Never torch."""
