"""What a network says and how others score it, while it trains or from a checkpoint."""
