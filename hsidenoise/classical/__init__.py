"""Methods without weights, under the same signature as networks."""
