"""One training run: rewards, routing, the GRPO step, engines, and what they record."""
