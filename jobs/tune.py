"""Search a recipe's best values over a space: `python jobs/tune.py --help` shows examples and all options."""

from ham_ray.workflows.tune import JOB

if __name__ == "__main__":
    JOB.main()
