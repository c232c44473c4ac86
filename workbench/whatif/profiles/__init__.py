"""A profile: how 1p1d is measured for it, the fits made of that, and the file that keeps them."""
