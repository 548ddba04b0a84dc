"""Options that several jobs have: type and help of each."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from ham_ray.command_line import choice

PRECISIONS = ("auto", "float32", "bfloat16")

Data = Annotated[
    str | None, Option(help="archive (HAM10000, ISIC 2019, your own) or IMAGES table; without it the synthetic sample")
]
Weights = Annotated[
    list[str], Option(help="imagenet, none, a no-top .h5 file, a folder of such, or ARCHITECTURE=FILE; repeatable")
]
External = Annotated[
    list[str],
    Option(help="archive or IMAGES table with diagnoses, to test what is finished on images of elsewhere; repeatable"),
]
Precision = Annotated[str, choice(PRECISIONS, "auto: what the processor is fast in")]
Size = Annotated[
    int | None,
    Option(help="pixels, where an archive is ingested; default: what the networks want, sample 64"),
]
