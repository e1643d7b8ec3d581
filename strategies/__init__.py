"""Strategies: one file each, each an Avalanche plugin."""
