"""What is read of a folder or zip, by content: all else is named, and what is no plain file is never opened."""

from __future__ import annotations

import io
import os
import socket
import stat
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from ham_ray.data import archives, formats, pictures, quarantine
from ham_ray.data.archives import list_files
from ham_ray.data.gallery import open_gallery
from ham_ray.data.images import open_images
from ham_ray.data.ingest import ingest
from ham_ray.data.layouts import open_archive
from ham_ray.errors import UserError

pytestmark = pytest.mark.data
SECRET = "root:x:0:0:nobody may see this"
GREY = Image.linear_gradient("L").resize((60, 45))


def encoded(form: str, image: Image.Image = GREY, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(**tags: int) -> bytes:
    written = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        written[int(tag.removeprefix("tag"))] = value
    return encoded("TIFF", tiffinfo=written)


def iso(brand: bytes, *compatible: bytes) -> bytes:
    rest = b"".join(compatible)
    return (16 + len(rest)).to_bytes(4, "big") + b"ftyp" + brand + b"\0\0\0\0" + rest + b"\0" * 40


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch):
    """An environment without the extra [heic]."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pictures.readers.cache_clear()
    yield
    pictures.readers.cache_clear()


def findings(place: Path) -> dict[str, tuple[str, str]]:
    """File to reason and detail, of all that predict would not predict."""
    found = open_gallery(str(place), 32, "crop")
    return {f.file: (f.reason, f.detail) for f in (*found.left_out, *found.load(slice(0, 1000)).findings)}


UNREAD = {
    "phone.HEIC": (iso(b"heic", b"mif1", b"heic"), "HEIC", "pip install 'ham_ray[heic]'"),
    "named_jpg.jpg": (iso(b"mif1", b"heic"), "HEIC", "pip install 'ham_ray[heic]'"),
    "IM000001": (b"\0" * 128 + b"DICM" + b"\0" * 400, "DICOM", "export it to PNG"),
    "camera.CR2": (b"II*\0\x10\0\0\0CR\x02\0" + b"\0" * 60, "RAW", "develop it"),
    "camera.cr3": (iso(b"crx ", b"isom"), "RAW", "develop it"),
    "camera.dng": (tiff(tag50706=1), "RAW", "develop it"),
    "camera.nef": (tiff(tag254=1), "RAW", "develop it"),  # its first picture is a thumbnail, which Pillow would read
    "new.jxl": (b"\xff\x0a" + b"\0" * 30, "JPEG XL", "convert it"),
    "layers.jpg": (b"8BPS\0\x01" + b"\0" * 30, "Photoshop", "convert it"),
    "film.jpg": (iso(b"isom", b"mp42"), "not an image", "video"),
    "page.jpg": (b"%PDF-1.7 ...", "not an image", "PDF"),
    "print.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", "PostScript"),
    "saved.png": (b"<!DOCTYPE html><p>404", "not an image", "HTML"),
    "words.jpg": (b"hello \xc3\xa4", "not an image", "text"),
    "noise.jpg": (bytes(range(128, 256)), "not an image", "unknown content"),
    "empty.jpg": (b"", "not an image", "empty, 0 bytes"),
    "bands.tif": (tiff(tag277=5), "TIFF", "channels"),
    "torn.avif": (encoded("AVIF")[:60], "truncated", "breaks off"),
    "torn.webp": (encoded("WEBP")[:20], "truncated", ""),
    "notes.txt": (b"words", "no picture", ".txt"),
    "inner.zip": (b"PK\x05\x06" + b"\0" * 18, "zip", "unpack it"),
    "x_segmentation.png": (encoded("PNG"), "segmentation mask", "outline"),
}


@pytest.mark.parametrize("write", ["to_folder", "to_zip"])
def test_every_file_that_is_not_read_is_named_with_its_kind(builder, draw, write, without_heic):
    """On 8 HEIC and a JPG predict said "1 images predicted" and listed nothing."""
    files = {"good.JPG": draw(1)} | {name: content for name, (content, _, _) in UNREAD.items()}
    place = getattr(builder, write)(files)
    found = findings(place)
    assert {name: reason for name, (reason, _) in found.items()} == {n: reason for n, (_, reason, _) in UNREAD.items()}
    for name, (_, detail) in found.items():
        assert UNREAD[name][2] in detail, name
    assert open_gallery(str(place), 32, "crop").load(slice(0, 1000)).image_ids == ["good"]


READ = {
    "a.avif": ("AVIF", {"quality": 100}),
    "b.jp2": ("JPEG2000", {}),
    "c.jfif": ("JPEG", {"quality": 100}),
    "no_suffix": ("PNG", {}),
    "wrong.dat": ("TIFF", {}),
    "wrong.gif": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("write", ["to_folder", "to_zip"])
def test_what_pillow_can_read_is_read_whatever_its_name(builder, write):
    files = {name: encoded(form, **options) for name, (form, options) in READ.items()}
    place = getattr(builder, write)(files)
    loaded = open_gallery(str(place), 32, "squash").load(slice(0, 100))
    assert loaded.image_ids == ["a", "b", "c", "no_suffix", "wrong.dat", "wrong.gif"] and not loaded.findings
    expected = np.asarray(GREY.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC), int)
    for image_id, pixels in zip(loaded.image_ids, loaded.pixels, strict=True):
        assert np.abs(pixels - expected).max() <= 4, image_id


def test_a_heic_is_read_upright_where_its_package_is_installed(builder):
    pillow_heif = pytest.importorskip("pillow_heif")
    pictures.readers.cache_clear()
    pillow_heif.register_heif_opener()
    upright = Image.merge("RGB", [GREY, GREY.rotate(180), GREY])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded("HEIF", upright.rotate(90, expand=True), quality=100, exif=exif.tobytes())
    place = builder.to_folder({"a.heic": turned, "b.png": encoded("PNG", upright), "c.HEIC": turned[:300]})
    loaded = open_gallery(str(place), 32, "squash").load(slice(0, 9))
    assert loaded.image_ids == ["a", "b"] and [f.reason for f in loaded.findings] == ["truncated"]
    assert np.abs(loaded.pixels[0].astype(int) - loaded.pixels[1]).max() <= 12


def test_ingest_takes_what_predict_takes(builder, tmp_path, without_heic):
    for number, (suffix, form) in enumerate([("avif", "AVIF"), ("jp2", "JPEG2000"), ("TIF", "TIFF"), ("webp", "WEBP")]):
        data = builder.files.pop(builder.name(number))
        image = Image.open(io.BytesIO(data))
        builder.files[f"{builder.name(number)[:-4]}.{suffix}"] = encoded(form, image)
    builder.files.pop(builder.name(7))
    builder.files["ISIC_0000007.heic"] = UNREAD["phone.HEIC"][0]
    builder.files |= {
        "masks/ISIC_0000001_segmentation.png": encoded("PNG"),
        "film.mp4": iso(b"isom"),
        ".DS_Store": b"x",
    }
    report = ingest(builder.to_folder(), tmp_path / "out", size=32, max_quarantined=0.1)
    assert len(open_images(report.uri).rows) == 41 and report.quarantined == {"HEIC": 1}
    assert "segmentation masks left out: 1" in report.notes
    assert "files that are no pictures left out: 1 (.mp4)" in report.notes
    assert "hidden files, folders and those of tools, not looked into: 1 (.DS_Store)" in report.notes


def test_no_picture_or_table_is_opened_to_list_an_archive(builder, monkeypatch):
    """There are ten thousand of them; what has another suffix is looked at."""
    place, looked = builder.to_folder(builder.kaggle() | {"film.mp4": iso(b"isom")}), []
    plain = archives.head
    monkeypatch.setattr(archives, "head", lambda member: (looked.append(member.file_name), plain(member))[1])
    open_archive(place)
    assert set(looked) == {"film.mp4"}


def test_a_repaired_reader_makes_failed_parts_again(builder, tmp_path, without_heic):
    """Parts hold failures too: with the package for HEIC installed they are of another identity."""
    before = pictures.readers()
    pictures.readers.cache_clear()
    sys.modules.pop("pillow_heif")
    pytest.importorskip("pillow_heif")
    assert pictures.readers() == (*before, "HEIF")


@pytest.fixture
def hostile(builder, draw, tmp_path: Path) -> Path:
    """A folder with two pictures and with entries that are no files of it."""
    place = builder.to_folder({"a.jpg": draw(1), "deep/b.jpg": draw(2)})
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "secret").write_text(SECRET)
    (outside / "folder" / "c.jpg").write_bytes(draw(3))
    os.mkfifo(place / "pipe.jpg")
    (place / "secret.jpg").symlink_to(outside / "secret")
    (place / "relative.jpg").symlink_to("../outside/secret")
    (place / "linked_folder").symlink_to(outside / "folder")
    (place / "own_folder").symlink_to(place / "deep")
    (place / "loop.jpg").symlink_to("loop.jpg")
    (place / "gone.jpg").symlink_to("nothing")
    (place / "null.jpg").symlink_to("/dev/null")
    (place / "to_pipe.jpg").symlink_to("pipe.jpg")
    (place / "inside.jpg").symlink_to("deep/b.jpg")
    (place / "HAM10000_images_part_1.zip").symlink_to(outside / "secret")
    (place / "folder.jpg").mkdir()
    return place


NEVER_OPENED = {
    "pipe.jpg": "a pipe (FIFO)",
    "secret.jpg": "a link that leaves the folder; copy what it points to",
    "relative.jpg": "a link that leaves the folder; copy what it points to",
    "linked_folder": "a link that leaves the folder; copy what it points to",
    "own_folder": "a link to a folder that is read where it stands",
    "loop.jpg": "a link that leads nowhere (a loop, or a folder one may not enter)",
    "gone.jpg": "a link to nothing",
    "null.jpg": "a link that leaves the folder; copy what it points to",
    "to_pipe.jpg": "a link to a pipe (FIFO)",
    "HAM10000_images_part_1.zip": "a link that leaves the folder; copy what it points to",
    "folder.jpg": "a folder: what is in it is read",
}


def test_what_is_no_file_of_the_folder_is_named_and_never_opened(hostile: Path, monkeypatch):
    opened: list[str] = []
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(Path(path).name), plain(path, *rest))[1])
    found = open_gallery(str(hostile), 32, "crop")
    assert found.load(slice(0, 99)).image_ids == ["a", "b", "inside"]  # a link within the folder is a file of it
    assert {f.file: f.detail for f in found.left_out} == NEVER_OPENED
    assert {f.reason for f in found.left_out} == {"no plain file"}
    assert set(opened) == {"a.jpg", "b.jpg", "inside.jpg"}


def test_ingest_quarantines_them_too_and_shows_nothing_of_them(builder, hostile, draw, tmp_path):
    """quarantine.csv printed the first bytes of a linked system file."""
    builder.to_folder()  # the data set, into the same folder
    (hostile / builder.name(3)).unlink()
    (hostile / builder.name(3)).symlink_to(tmp_path / "outside" / "secret")
    with pytest.raises(UserError, match="quarantined"):
        ingest(hostile, tmp_path / "out", size=32)
    listed = Path(f"{tmp_path / 'out'}.quarantine.csv").read_text()
    assert f"{builder.name(3)},ISIC_0000003,no plain file,a link that leaves the folder" in listed
    assert all(name in listed for name in NEVER_OPENED) and SECRET[:4] not in listed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices_and_sockets_are_named(builder, draw, tmp_path, monkeypatch):
    place = builder.to_folder({"a.jpg": draw(1)})
    try:
        os.mknod(place / "zero.png", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no right to make devices here")
    monkeypatch.chdir(place)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        assert {f.file: f.detail for f in open_gallery(str(place), 32, "crop").left_out} == {
            "socket.jpg": "a socket", "zero.png": "a device",
        }  # fmt: skip


@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.zip", "pipe"])
def test_a_pipe_named_itself_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"is a pipe \(FIFO\): name a folder, a zip or a picture"):
        list_files(tmp_path / name)


def test_links_in_a_zip_are_not_followed(builder, draw):
    place = builder.to_zip({"a.jpg": draw(1)})
    link = zipfile.ZipInfo("b.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert findings(place) == {"b.jpg": ("no plain file", "a link in a zip; not read")}


def test_a_file_that_becomes_a_pipe_or_vanishes_or_grows_is_a_finding(builder, draw, monkeypatch):
    place = builder.to_folder({f"{name}.jpg": draw(1) for name in "abcd"})
    found = open_gallery(str(place), 32, "crop")
    (place / "a.jpg").unlink()
    (place / "b.jpg").unlink()
    os.mkfifo(place / "b.jpg")
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100_000)
    (place / "c.jpg").write_bytes(b"\0" * 100_001)
    loaded = found.load(slice(0, 9))
    assert loaded.image_ids == ["d"]
    assert {f.image_id: (f.reason, f.detail) for f in loaded.findings} == {
        "a": ("cannot be opened", "No such file or directory"),
        "b": ("unreadable", "a pipe (FIFO) by now, no plain file"),
        "c": ("unreadable", "100,001 bytes by now, more than any image has"),
    }


@pytest.mark.parametrize("write", ["to_folder", "to_zip"])
def test_hidden_entries_and_those_of_tools_are_counted_and_not_looked_into(builder, draw, write):
    names = [".ipynb_checkpoints/a.jpg", ".Trash-1000/b.jpg", "__MACOSX/._a.jpg", "x/@eaDir/c.jpg", "Thumbs.db"]
    place = getattr(builder, write)({"a.jpg": draw(1)} | {name: draw(9) for name in (*names, "x/.DS_Store")})
    found = open_gallery(str(place), 32, "crop")
    assert found.rows["image_id"].tolist() == ["a"] and not found.left_out
    assert found.hidden == dict.fromkeys(
        [".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir", "Thumbs.db", ".DS_Store"], 1
    )


def test_a_folder_of_nothing_but_hidden_files_says_so(builder):
    with pytest.raises(UserError, match=r"is empty: no image in it; left out: \.DS_Store"):
        list_files(builder.to_folder({".DS_Store": b"x"}))


def test_a_folder_in_it_that_one_may_not_read_is_a_finding(builder, draw, monkeypatch):
    place = builder.to_folder({"a.jpg": draw(1), "closed/b.jpg": draw(2)})
    plain = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert findings(place) == {"closed": ("unreadable", "a folder: Permission denied")}


NAMES = [b"caf\xe9.jpg", b"a\nb.jpg", b"\x1b[31mred.jpg", b"12:30.jpg", "é.jpg".encode()]


def test_names_that_are_not_utf8_or_hold_control_characters_are_read_and_written_in_hex(builder, draw):
    """One such name ended predict with a traceback."""
    place = builder.to_folder({"good.jpg": draw(0)})
    for number, name in enumerate(NAMES, start=1):
        Path(os.fsdecode(os.fsencode(place) + b"/" + name)).write_bytes(draw(number))
    Path(os.fsdecode(os.fsencode(place) + b"/torn\xff.jpg")).write_bytes(draw(9)[:100])
    found = open_gallery(str(place), 32, "crop")
    loaded = found.load(slice(0, 99))
    assert set(loaded.image_ids) == {"good", r"caf\xe9", r"a\nb", r"\x1b[31mred", "12:30", "é"}
    assert [(f.file, f.image_id, f.reason) for f in loaded.findings] == [(r"torn\xff.jpg", r"torn\xff", "truncated")]
    assert r"torn\xff.jpg" in quarantine.to_csv(loaded.findings).decode()
    assert "".join(found.rows["image_id"]).isprintable()


def test_names_of_other_letters_are_the_same_in_folder_and_zip(builder, draw):
    composed, apart = (unicodedata.normalize(form, "Läsion") for form in ("NFC", "NFD"))
    assert open_gallery(str(builder.to_folder({f"{apart}.jpg": draw(1)})), 32, "crop").rows["image_id"][0] == composed
    place = builder.to_zip({f"{composed}.jpg": draw(1)})
    data = place.read_bytes()  # as macOS packs it: UTF-8 that does not say so
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(signature) + flags
        assert data[start + 1] == 0x08
        data = data[: start + 1] + b"\0" + data[start + 2 :]
    place.write_bytes(data)
    assert open_gallery(str(place), 32, "crop").rows["image_id"][0] == composed


def test_a_zip_whose_names_lie_about_utf8_is_one_line(builder, draw):
    place = builder.to_zip({"Läsion.jpg": draw(1)})
    place.write_bytes(place.read_bytes().replace("ä".encode(), b"\xe4\xe4"))
    with pytest.raises(UserError, match="names that say they are UTF-8 and are not; pack it again"):
        list_files(place)


def test_copies_are_one_image_and_listed_and_other_pictures_of_one_name_are_all_kept(builder, draw):
    files = {"x/1.jpg": draw(1), "y/1.jpg": draw(1), "2.jpg": draw(2), "a/2.jpg": draw(3), "2.jpg.png": draw(4)}
    place = builder.to_folder(files)
    found = open_gallery(str(place), 32, "crop")
    assert found.rows["image_id"].tolist() == ["1", "2.jpg", "2.jpg (2)", "a/2.jpg"]
    assert len(found.load(slice(0, 9)).image_ids) == 4
    assert findings(place) == {"y/1.jpg": ("copy", "the same bytes as x/1.jpg, predicted once")}


def test_copies_of_which_one_cannot_be_read_are_kept_apart(builder, draw, monkeypatch):
    place = builder.to_folder({"x/1.jpg": draw(1), "y/1.jpg": draw(1)})
    monkeypatch.setattr(archives, "read", lambda member: (_ for _ in ()).throw(archives.UnreadableMember("gone")))
    assert open_gallery(str(place), 32, "crop").rows["image_id"].tolist() == ["x/1.jpg", "y/1.jpg"]


def test_no_message_of_pillow_quotes_bytes(monkeypatch):
    """As its "broken PNG file (chunk b'…')" does."""

    def load(image):
        raise SyntaxError(f"broken PNG file (chunk {SECRET.encode()!r})")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(pictures.BadPicture) as caught:
        pictures.resized(encoded("PNG"), 32, "crop")
    assert (caught.value.reason, str(caught.value)) == ("truncated", "damaged (SyntaxError)")


def test_colours_that_have_no_rgb_are_named():
    with pytest.raises(pictures.BadPicture, match="'La': convert it to RGB") as caught:
        pictures._in_rgb(Image.new("La", (40, 30)))
    assert caught.value.reason == "unknown colours"


@pytest.mark.parametrize("kind", formats.READ)
def test_the_kinds_that_are_read_have_a_name_by_content(kind):
    forms = {"WebP": "WEBP", "JPEG 2000": "JPEG2000"}
    data = UNREAD["phone.HEIC"][0] if kind == "HEIC" else encoded(forms.get(kind, kind))
    assert formats.kind(data[: formats.HEAD]) == kind
