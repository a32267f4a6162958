"""What a cube says about itself, without weights."""
