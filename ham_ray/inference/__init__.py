"""From a saved model to PREDICTIONS: checking it, loading it, and predicting in bounded batches."""
