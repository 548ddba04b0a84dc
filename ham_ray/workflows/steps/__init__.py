"""What the jobs do, step by step: trainings, comparisons, finals, predictions, reports."""
