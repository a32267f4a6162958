"""How good a denoised cube is."""
