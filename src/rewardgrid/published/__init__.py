"""The published study beside ours: its figures, its claims, and what becomes of them on another base."""
