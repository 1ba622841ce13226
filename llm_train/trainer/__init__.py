"""What extends Lightning's Trainer: strategies, callbacks, loggers."""
