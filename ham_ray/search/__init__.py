"""From a space and IMAGES to TRIALS: the study, its trials, and Ray Tune, which only executes it."""
