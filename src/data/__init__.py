"""Photographs: manifest, readers for folders and tar files, and the one decoder that every stage uses."""
