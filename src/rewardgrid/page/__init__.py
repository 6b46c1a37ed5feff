"""A page to look at: every cell of a study in one file that works offline."""
