"""Encoders `(input_shape) -> features`, and heads `features -> logits`; one does not know the other."""
