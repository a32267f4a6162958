"""Filters of the planes (eigen-images) of a cube, without weights."""
