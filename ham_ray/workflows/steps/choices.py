"""What jobs that train choose from their options: images, starting weights, precision; each printed with its reason."""

from __future__ import annotations

from ham_ray import hardware, storage
from ham_ray.cluster import check_visible, in_submitted_job
from ham_ray.console import progress
from ham_ray.data.images import Images
from ham_ray.data.prepare import prepare, prepare_sample
from ham_ray.errors import UserError
from ham_ray.models import registry
from ham_ray.models.network import build
from ham_ray.models.weights import RANDOM, Weights, resolve_weights
from ham_ray.recipe import Recipe
from ham_ray.workflows import weights as starts


def images(data: str | None, out: str, size: int | None, smoke: bool, recipes: list[Recipe]) -> Images:
    """Open the IMAGES table of `data`, or of the synthetic sample without it; an archive is ingested into `out`.

    Its size, where none is asked for, is the most that a network of these recipes wants.
    """
    path, networks = storage.absolute(out), {registry.architecture(recipe.family).name for recipe in recipes}
    architectures = [registry.architectures()[name] for name in sorted(networks)]
    if data is None:
        print("images: no --data, taking the built-in synthetic sample", flush=True)
        result = prepare_sample(path, size or (32 if smoke else 64))
    else:
        if storage.exists(data):
            check_visible(storage.absolute(data), "--data")
        with progress("ingest") as advance:
            result = prepare(data, path, size or max(one.wanted for one in architectures), advance)
    source, fingerprint = result.card["source"]["file"], result.fingerprint[:12]
    print(f"images: {len(result.rows):,} of {source}, {result.size} px, fingerprint {fingerprint}")
    for one in architectures:
        if (side := one.side(result.size)) != result.size:
            print(f"{one.name}: images are resized to {side} px, which patches of {one.patch} px fill")
    return result


def weights(specs: list[str], recipes: list[Recipe], images: Images) -> dict[str, Weights]:
    """Load the starting weights of each pretrained architecture of these recipes, by its name.

    Each is loaded into its network once: what does not fit is refused before anything is trained.

    Raises:
        UserError: they cannot be had or do not fit; on the synthetic sample, random ones take the place of `imagenet`.
    """
    chosen = starts.sources(specs, recipes)
    result: dict[str, Weights] = {}
    for name, source in chosen.items():
        of = f" of {name}" if len(chosen) > 1 else ""
        recipe = next(recipe for recipe in recipes if registry.architecture(recipe.family).name == name)
        try:
            result[name] = resolve_weights(source, registry.architectures()[name])
        except UserError as error:
            if source != "imagenet" or not images.card["synthetic"]:
                raise
            print(f"weights{of}: RANDOM, which only the synthetic sample may fall back to: {error}")
            result[name] = RANDOM
            continue
        build(recipe, images.size, result[name], len(images.classes))
        sha256 = result[name].sha256
        print(f"weights{of}: {result[name].name}" + (f", sha256 {sha256[:12]}" if sha256 else ""), flush=True)
    return result


def precision(asked: str, use_gpu: bool) -> str:
    """Choose the precision: `asked`, or for `auto` what the processor is fast in."""
    if asked != "auto":
        return asked
    if use_gpu:
        print("precision: float32, because GPUs before Ampere lack bfloat16; later ones want --precision bfloat16")
        return "float32"
    chosen, reason = ("bfloat16", "faster") if hardware.fast_in_bfloat16() else ("float32", "no faster")
    print(f"precision: {chosen}, because bfloat16 is {reason} than float32 on this processor (weights stay float32)")
    return chosen


def tell_temporary(out: str) -> None:
    """Say where a submitted job would lose what it writes."""
    if in_submitted_job() and storage.absolute(out) != out:
        print(f"out: {out!r} is a folder of this job's temporary copy; give a URI or an absolute path to keep it")
