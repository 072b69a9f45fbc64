"""The one training loop and what it stands on: device, precision, checkpoints, resume, metrics."""
