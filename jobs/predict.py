"""Predict pictures by trained models: `python jobs/predict.py --help` shows examples and all options."""

from ham_ray.workflows.predict import JOB

if __name__ == "__main__":
    JOB.main()
