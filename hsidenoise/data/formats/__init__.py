"""File formats, one module each: what a file holds, a variable or a part of it, and writing one."""
