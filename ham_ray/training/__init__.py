"""From a recipe and IMAGES to a run: batches, objectives, the compiled step, epochs, workers."""
