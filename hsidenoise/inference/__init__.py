"""One cube through one method."""
