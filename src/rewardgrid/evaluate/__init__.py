"""What a finished cell is like: its samples, their diversity, its divergence from the base."""
