"""Train the baselines and report them: `python jobs/baseline.py --help` shows examples and all options."""

from ham_ray.workflows.baseline import JOB

if __name__ == "__main__":
    JOB.main()
