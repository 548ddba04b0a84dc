"""One file an architecture: each makes an `ARCHITECTURE`, which `ham_ray.models.registry` finds by itself."""
