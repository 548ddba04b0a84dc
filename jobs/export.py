"""Export a trained model for other programs: `python jobs/export.py --help` shows examples and all options."""

from ham_ray.workflows.export import JOB

if __name__ == "__main__":
    JOB.main()
