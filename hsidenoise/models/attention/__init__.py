"""Bi-level routing attention, for use in any network."""
