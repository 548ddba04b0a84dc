"""Pictures to be predicted, from any folder, zip or table: what is found, what it is called, what is known of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ham10000 import CLASSES
from PIL import Image

from ham_ray.data import gallery, pictures
from ham_ray.data.gallery import open_gallery
from ham_ray.data.ingest import ingest
from ham_ray.data.truth import labels
from ham_ray.errors import UserError

pytestmark = pytest.mark.data


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_folder_of_pictures_has_ids_and_no_labels(builder, draw):
    place = builder.to_folder({"b.jpg": draw(1), "deep/a.png.jpg": draw(2), "notes.txt": b"x", "._b.jpg": b"mac"})
    found = open_gallery(str(place), 32, "crop")
    assert found.rows["image_id"].tolist() == ["a.png", "b"]
    assert found.rows["dx"].isna().all() and (found.rows["fold"] == -1).all()
    assert found.rows["group_id"].tolist() == ["a.png", "b"]
    loaded = found.load(slice(0, 9))
    assert loaded.image_ids == ["a.png", "b"] and loaded.pixels.shape == (2, 32, 32, 3) and not loaded.findings


def test_files_of_one_name_in_two_folders_are_two_images_unless_they_are_copies(builder, draw):
    place = builder.to_folder(
        {"x/1.jpg": draw(1), "y/1.jpg": draw(2), "x/2.jpg": draw(3), "y/2.jpg": draw(3), "3.jpg": draw(4)}
    )
    assert open_gallery(str(place), 32, "crop").rows["image_id"].tolist() == ["2", "3", "x/1.jpg", "y/1.jpg"]


@pytest.mark.parametrize("write", ["to_folder", "to_zip"])
def test_an_archive_gives_labels_lesions_and_facts(builder, write):
    builder.rows[3]["dx"] = "melanome"  # unknown: the image is predicted all the same
    builder.rows[4]["age"], builder.rows[4]["sex"] = "", "unknown"
    rows = open_gallery(str(getattr(builder, write)()), 32, "crop").rows.set_index("image_id")
    assert len(rows) == 42
    assert labels(rows["dx"], CLASSES).isna().sum() == 1 and rows["dx"].iloc[0] == "akiec"
    assert rows.loc["ISIC_0000004", "sex"] is None and np.isnan(rows.loc["ISIC_0000004", "age"])
    assert rows.loc["ISIC_0000001", "group_id"] == rows.loc["ISIC_0000002", "group_id"] == "HAM_0000001"


def test_rows_that_contradict_say_nothing(builder):
    builder.rows.append(builder.rows[0] | {"dx": "nv"})
    rows = open_gallery(str(builder.to_folder()), 32, "crop").rows.set_index("image_id")
    assert len(rows) == 42 and rows["dx"].isna().tolist() == [True] + [False] * 41


def test_bad_pictures_are_findings_and_the_rest_is_read(builder, draw):
    files = {f"{name}.jpg": draw(1) for name in "ab"} | {"torn.jpg": draw(2)[:200], "text.jpg": b"hello"}
    bomb = saved(Image.new("1", (20_000, 20_000)), "PNG")
    found = open_gallery(str(builder.to_folder(files | {"bomb.png": bomb, "empty.jpg": b""})), 32, "crop")
    loaded = found.load(slice(0, 100))
    assert loaded.image_ids == ["a", "b"]
    reasons = {finding.image_id: finding.reason for finding in loaded.findings}
    assert reasons == {
        "bomb": "too many pixels", "empty": "not an image", "text": "not an image", "torn": "truncated"
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's about what is cut
@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP", "BMP"])
def test_a_file_cut_anywhere_is_a_finding_or_a_picture(form):
    """Pillow's parsers raise errors of any kind on damaged headers; none may end the job."""
    page = Image.linear_gradient("L").resize((20, 20))
    whole = saved(page, form, **({"save_all": True, "append_images": [page]} if form in ("TIFF", "GIF") else {}))
    bad = 0
    for end in range(len(whole)):
        try:
            pictures.resized(whole[:end], 8, "crop")
        except pictures.BadPicture:
            bad += 1
    assert bad > len(whole) / 3


def test_what_is_transparent_looks_white(builder):
    black = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    black.paste((200, 10, 10, 255), (0, 0, 20, 40))
    place = builder.to_folder({"a.png": saved(black, "PNG")})
    pixels = open_gallery(str(place), 40, "crop").load(slice(0, 1)).pixels[0]
    assert pixels[5, 5].tolist() == [200, 10, 10] and pixels[5, 35].tolist() == [255, 255, 255]


def test_one_picture_by_itself(builder, draw):
    place = builder.to_folder({"a.jpg": draw(1), "b.jpg": draw(2)})
    found = open_gallery(str(place / "b.jpg"), 32, "crop")
    assert found.rows["image_id"].tolist() == ["b"] and len(found.load(slice(0, 5)).pixels) == 1


def test_other_modes_give_the_same_picture(builder):
    grey = Image.linear_gradient("L").resize((64, 48))
    colour = Image.merge("RGB", [grey, grey.rotate(180), grey])
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    files = {
        "grey.png": saved(grey, "PNG"),
        "grey16.png": saved(deep, "PNG"),
        "colour.png": saved(colour, "PNG"),
        "rgba.png": saved(colour.convert("RGBA"), "PNG"),
        "palette.gif": saved(grey.convert("P"), "GIF"),
        "turned.png": saved(colour.rotate(90, expand=True), "PNG", exif=exif),
        "cmyk.jpg": saved(colour.convert("CMYK"), "JPEG", quality=100),
        "colour.bmp.bmp": saved(colour, "BMP"),
    }
    found = open_gallery(str(builder.to_folder(files)), 32, "squash")
    loaded = found.load(slice(0, 100))
    assert not loaded.findings
    pixels = dict(zip(loaded.image_ids, loaded.pixels.astype(int), strict=True))
    for first, second, tolerance in [
        ("grey", "grey16", 1),
        ("grey", "palette", 1),
        ("colour", "rgba", 0),
        ("colour", "turned", 1),
        ("colour", "colour.bmp", 0),
        ("colour", "cmyk", 12),
    ]:
        assert np.abs(pixels[first] - pixels[second]).max() <= tolerance, second


def test_several_frames_are_not_one_picture(builder):
    frames = [Image.new("L", (40, 30), value) for value in (0, 100, 200)]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    loaded = open_gallery(str(builder.to_folder({"moving.gif": moving})), 32, "crop").load(slice(0, 1))
    assert [finding.reason for finding in loaded.findings] == ["several frames"] and loaded.pixels.shape == (
        0,
        32,
        32,
        3,
    )


def test_places_without_pictures_are_refused_with_what_was_found(builder, tmp_path):
    with pytest.raises(UserError, match="no picture in it .*; found 2 .txt"):
        open_gallery(str(builder.to_folder({"a.txt": b"", "b.txt": b""})), 32, "crop")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty"):
        open_gallery(str(tmp_path / "empty"), 32, "crop")
    with pytest.raises(UserError, match="no such file or folder"):
        open_gallery(str(tmp_path / "nowhere"), 32, "crop")


def test_a_table_is_taken_only_in_the_models_size_and_geometry(builder, tmp_path):
    table = ingest(builder.to_zip(), tmp_path / "images", size=32).uri
    found = open_gallery(table, 32, "crop")
    assert isinstance(found, gallery.TableGallery) and len(found.load(slice(10, 30)).image_ids) == 20
    for size, geometry in ((48, "crop"), (32, "squash")):
        with pytest.raises(UserError, match=rf"a table of 32 px \(crop\), the model takes {size} px \({geometry}\)"):
            open_gallery(table, size, geometry)


def test_a_stretch_of_a_table_is_read_from_the_files_that_hold_it_alone(builder, tmp_path):
    folder = Path(ingest(builder.to_zip(), tmp_path / "images", size=32).uri)
    rows = pq.read_table(folder / "images-00000.parquet")
    (folder / "images-00000.parquet").unlink()
    for start in range(0, 42, 10):
        pq.write_table(rows.slice(start, 10), folder / f"images-{start // 10:05d}.parquet", row_group_size=4)
    found = open_gallery(str(folder), 32, "crop")
    stretches = {start: found.stretch(slice(start, start + 10)) for start in (0, 15, 30, 40)}
    for number in (0, 3, 4):  # 15 to 24 are in the files 1 and 2
        (folder / f"images-{number:05d}.parquet").write_bytes(b"damaged")
    loaded = stretches[15].load()
    assert loaded.image_ids == rows["image_id"].to_pylist()[15:25] and not loaded.findings
    for pixels, encoded in zip(loaded.pixels, rows["image"].to_pylist()[15:25], strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
    for start in (0, 30, 40):
        with pytest.raises(pa.ArrowInvalid):
            stretches[start].load()
