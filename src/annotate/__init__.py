"""Stage 1: a pretrained classifier writes a dense map of its best classes for every training photograph."""
