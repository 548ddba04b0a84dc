"""Make an IMAGES table from an archive: `python jobs/ingest.py --help` shows examples and all options."""

from ham_ray.workflows.ingest import JOB

if __name__ == "__main__":
    JOB.main()
