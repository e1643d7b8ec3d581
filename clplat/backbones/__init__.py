"""Encoders, inputs to features, and heads, features to logits; neither knows the other."""
