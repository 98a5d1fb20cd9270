"""Models on several ranks: training and exact decoding with parts of a model on each process."""
