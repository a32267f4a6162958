"""Files and data sets: cubes from and to files, training data from cubes."""
