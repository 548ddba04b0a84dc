"""Evaluate tables of predictions: `python jobs/evaluate.py --help` shows examples and all options."""

from ham_ray.workflows.evaluate import JOB

if __name__ == "__main__":
    JOB.main()
