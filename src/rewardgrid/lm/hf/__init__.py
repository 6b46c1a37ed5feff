"""Hugging Face's layout, in and out: config.json, the names of tensors, PEFT's adapters. Nothing else knows of it."""
