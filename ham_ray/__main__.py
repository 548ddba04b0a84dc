"""Run `ham-ray` as `python -m ham_ray`."""

from ham_ray.command_line import main

if __name__ == "__main__":
    main()
