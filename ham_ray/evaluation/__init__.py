"""From PREDICTIONS to numbers: metrics, intervals, thresholds, calibration, assessment."""
