"""Where a base comes from: stories, tokenizer, pretraining, hub, local files, prompts."""
