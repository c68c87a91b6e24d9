"""Files that are broken, missing, enormous or oddly named: each is named with its mend, and none stops the machine."""

import gzip
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from tests.dicom_files import header, place, write_file, write_series
from tests.faults.mutants import dicom, grown
from tests.tiny_data import FLAGS, pretrained, write_tiny

from nissl import cli
from nissl.errors import DataError
from nissl.imageio.formats import SUFFIXES, open_raster, read_header, read_raster, write_image, write_mask

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = tuple(kind for kind in SUFFIXES if kind not in (".dcm", ".dicom"))


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


def stack_of_pages(compression):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in noise(5, 40, 50):
            writer.write(page, compression=compression, contiguous=False, metadata=None)
    return buffer.getvalue()


def sound_files(tmp_path):
    """Bytes of a good file of each kind."""
    contents = {}
    for kind in WRITTEN:
        path = tmp_path / f"good{kind}"
        write_image(path, noise(1, *((6, 20, 30) if kind.startswith((".tif", ".nii")) else (20, 30))))
        contents[kind] = path.read_bytes()
    contents |= {"-pages.tif": stack_of_pages(None), "-deflated.tif": stack_of_pages("zlib")}
    return contents | {f"-{kind}.dcm": dicom(kind) for kind in ("plain", "rle", "jpeg", "frames")}


def test_f17_a_file_cut_short_anywhere_is_refused_or_whole(tmp_path):
    """Whatever the cut, the pixels are those of the whole file or there is a DataError that names the file."""
    for kind, content in sound_files(tmp_path).items():
        path = tmp_path / f"cut{kind}"
        path.write_bytes(content)
        whole = read_raster(path).pixels
        refused = 0
        cuts = np.unique(np.linspace(0, len(content) - 1, 60).astype(int))
        for cut in cuts:
            path.write_bytes(content[:cut])
            try:
                np.testing.assert_array_equal(read_raster(path).pixels, whole, err_msg=f"{kind} cut at {cut}")
            except DataError as error:
                refused += 1
                assert error.where == ("a DICOM file" if kind.endswith(".dcm") else str(path))
                assert error.found and error.expected and error.fix
        assert refused > 0.9 * len(cuts), kind


def test_f17_other_content_under_a_known_name_is_refused(tmp_path):
    for kind in SUFFIXES:
        for name, content, said in [
            ("text", b"not an image, only words" * 40, "another kind"),
            ("empty", b"", "empty"),
        ]:
            path = tmp_path / f"{name}{kind}"
            path.write_bytes(content)
            for read in (read_header, read_raster):
                with pytest.raises(DataError) as caught:
                    read(path)
                private = kind not in WRITTEN
                assert caught.value.where == ("a DICOM file" if private else str(path))
                assert (said if not private else "another kind") in caught.value.found


def broken_set(root, kinds):
    """Ten sound cases, then one of each kind cut in half, an empty file and a text with the name of a picture."""
    write_tiny(root, count=8)
    (root / "cases.csv").unlink()
    for number, kind in enumerate(kinds):
        path = root / "images" / f"cut{number}{kind}"
        if kind == ".dcm":
            write_file(path, noise(32, 32, dtype=np.uint16))
        else:
            write_image(path, noise(1, 32, 32, seed=number + 10))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "images" / "empty.png").write_bytes(b"")
    (root / "images" / "text.png").write_text("a page of text that was saved as a picture")
    return root


def test_f17_check_lists_all_broken_files_in_one_pass_and_training_refuses(tmp_path, capsys):
    root = broken_set(tmp_path / "data", [".png", ".tif", ".nii", ".nii.gz"])
    assert cli.run(["check", str(root), "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)["findings"]
    names = [Path(finding["where"]).name for finding in findings if finding["level"] == "error"]
    assert sorted(names) == ["cut0.png", "cut1.tif", "cut2.nii", "cut3.nii.gz", "empty.png", "text.png"]
    assert all(finding["found"] and finding["expected"] and finding["fix"] for finding in findings)
    flags = [*FLAGS, *pretrained(), "--labels", "2"]
    assert cli.run(["train", str(root), "--out", str(tmp_path / "run"), *flags]) == 3
    assert any(name in capsys.readouterr().err for name in names) and not (tmp_path / "run").exists()


def test_f17_check_lists_broken_dicom_beside_other_broken_files(tmp_path, capsys):
    root = broken_set(tmp_path / "data", [".png", ".dcm", ".tif"])
    write_series(root / "images" / "scan", noise(4, 32, 32))
    (root / "images" / "scan" / "broken.dcm").write_bytes(dicom("plain")[:900])
    assert cli.run(["check", str(root), "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)["findings"]
    errors = [finding["where"] for finding in findings if finding["level"] == "error"]
    places = [f"(file {number} of 14 by name)" for number in (1, 2, 3, 4, 13, 14)]
    assert [sum(where.endswith(at) for where in errors) for at in places] == [1] * 6 and len(errors) == 6
    series = next(finding for finding in findings if "(file 13 of 14 by name)" in finding["where"])
    assert series["found"].startswith("file 5 of 5 by name: ") or "file 1 of 5 by name: " in series["found"]


def test_f27_odd_file_names_are_read(tmp_path):
    for name in ("с пробелом ü.png", "x" * 200 + ".png", "con.png", "a.b.c.nii.gz", "100%&?.tif"):
        write_mask(tmp_path / name, np.eye(9, dtype=int), None)
        np.testing.assert_array_equal(read_raster(tmp_path / name).pixels[0], np.eye(9))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data, out = write_tiny(tmp_path_factory.mktemp("sound") / "data"), tmp_path_factory.mktemp("runs") / "run"
    assert cli.run(["train", str(data), "--out", str(out), *FLAGS, "--pretrain", "none"]) == 0
    return out


def test_f27_no_two_masks_of_one_folder_get_one_name(run, tmp_path, capsys):
    names = ["с пробелом ü.png", "y" * 200 + ".png", "con.png", "NUL.tif", "a.b.c.nii.gz", "a.b.c.png", "A.B.C.tif"]
    names += ["case.png", "Case.png", "CASE.PNG", "-rf.png", "%s;$HOME.png", "line\nbreak.png", "x.dcm", "X.DCM"]
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        path = tmp_path / "in" / name
        pixels = noise(1, 32, 32, seed=number)
        write_file(path, pixels[0]) if name.lower().endswith(".dcm") else write_image(path, pixels)
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in sorted((tmp_path / "in").iterdir()):
        if path.suffix.lower() != ".dcm":
            (plain / path.name).write_bytes(path.read_bytes())
    for folder, count in ((tmp_path / "in", len(names)), (plain, len(names) - 2)):
        out = tmp_path / f"masks of {folder.name}"
        assert cli.run(["predict", str(run), str(folder), "--out", str(out)]) == 0, capsys.readouterr().err
        masks = [path.name for path in out.iterdir() if path.name != "predictions.json"]
        assert len(masks) == len({name.casefold() for name in masks}) == count
        record = json.loads((out / "predictions.json").read_text())["images"]
        assert sorted(entry["mask"] for entry in record.values()) == sorted(masks)
        assert (record.keys() == {path.name for path in folder.iterdir()}) == (folder == plain)


def test_f28_missing_files_loops_folders_and_pipes_are_refused(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("absent.png", "absent.tif", "absent.nii.gz", "loop.png", "pipe.png", "folder.png", "scan.czi"):
        with pytest.raises(DataError) as caught:
            read_raster(tmp_path / name)
        assert name in str(caught.value)


def test_f28_a_loop_a_folder_and_a_pipe_among_the_images_are_findings(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    (root / "images" / "loop.png").symlink_to(root / "images" / "loop.png")
    (root / "images" / "ring").symlink_to(root / "images")
    os.mkfifo(root / "images" / "pipe.tif")
    assert cli.run(["check", str(root), "--json"]) == 3
    findings = json.loads(capsys.readouterr().out)["findings"]
    wrong = [finding for finding in findings if finding["level"] == "error"]
    assert {Path(finding["where"]).name for finding in wrong} == {"loop.png", "pipe.tif"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_f28_an_unreadable_file_is_a_finding(tmp_path, capsys):
    root = write_tiny(tmp_path / "data")
    (root / "images" / "field003.png").chmod(0)
    assert cli.run(["check", str(root)]) == 3
    assert "field003.png" in (shown := capsys.readouterr().out) and "Permission denied" in shown


def child(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_f28_a_file_that_vanishes_in_the_middle_stops_the_run_with_its_name(tmp_path, workers):
    root, out = write_tiny(tmp_path / "data"), tmp_path / "run"
    flags = [*FLAGS, "--steps", "1000000", "--pretrain", "none", "--labels", "field001,field003"]
    arguments = ["-m", "nissl", "train", root, "--out", out, *flags, "--data.cache-gib", "0", "--data.workers", workers]
    process = child(*arguments)
    try:
        while process.poll() is None and not ((out / "log.jsonl").is_file() and (out / "log.jsonl").stat().st_size):
            time.sleep(0.05)
        (root / "images" / "field003.png").unlink()
        _, shown = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3, shown
    assert "field003.png" in shown and "No such file" in shown and "Traceback" not in shown


@pytest.mark.parametrize("kind", [".tif", ".nii.gz", ".png"])
def test_f29_the_limit_is_checked_before_decoding(tmp_path, kind):
    path = tmp_path / f"large{kind}"
    zeros = np.zeros((1, 5000, 5000), np.uint8)
    write_image(path, zeros)
    assert path.stat().st_size < 200_000
    read_header(path)  # what is imported by the first call is no part of the measure
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        read_raster(path, limit_gib=0.01)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    message = str(caught.value)
    assert path.name in message and "0.0233 GiB" in message and "0.01 GiB" in message and "--data.limit-gib" in message
    assert read_raster(path, limit_gib=0.03).pixels.shape == zeros.shape


def deflated_tiff(path):
    """What takes 436 kB here are 400 MB of zeros."""
    tiles = (np.zeros((2000, 2000), np.uint8) for _ in range(100))
    tifffile.imwrite(path, tiles, shape=(20_000, 20_000), dtype=np.uint8, tile=(2000, 2000), compression="zlib")


def tile_beyond_its_image(path):
    tifffile.imwrite(path, noise(32, 32), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages[0].tags[name].overwrite(20_480)


def jpeg_beyond_its_tile(path):
    tifffile.imwrite(path, noise(64, 64, 3), compression="jpeg", photometric="ycbcr")
    content = bytearray(path.read_bytes())
    at = content.find(b"\xff\xc0") + 5
    content[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    path.write_bytes(content)


def zeros_behind(start, path, count=400):
    """Compress some bytes and 400 MB of zeros."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(count):
            file.write(bytes(10**6))


def zipped_nifti(path):
    zeros_behind(nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).to_bytes()[:352], path)
    content = bytearray(gzip.decompress(path.read_bytes())[:352])
    content[42:48] = np.array([800, 800, 625], "<i2").tobytes()
    zeros_behind(bytes(content), path)


def nifti_with_a_vast_extension(path):
    image = nibabel.Nifti1Image(noise(8, 8, 8), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 8))
    content = bytearray(image.to_bytes())
    content[108:112] = np.float32(4e8).tobytes()  # where the pixels begin
    content[352:356] = np.int32(4e8 - 352).tobytes()  # length of the extension
    zeros_behind(bytes(content), path)


def png_of_a_header(path):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    start = chunk(b"IHDR", (40_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0]))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def dicom_of_many_frames(path):
    data = header(noise(8, 9), NumberOfFrames=5000, Rows=1000, Columns=100)
    data.save_as(path, enforce_file_format=True)


def dicom_picture_beyond_its_frame(path):
    content = bytearray(dicom("jpeg"))
    at = content.find(b"\xff\xc0") + 5
    content[at : at + 4] = (20_000).to_bytes(2, "big") * 2
    path.write_bytes(content)


def deflated_dicom(path):
    """All behind the first group is one compressed stream."""
    data = header(noise(8, 9), **place(0))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    start = buffer.getvalue()[: buffer.getvalue().find(b"1.2.840.10008.1.2.1.99") + 22]
    packer = zlib.compressobj(1, wbits=-15)
    body = b"".join(packer.compress(bytes(10**6)) for _ in range(400)) + packer.flush()
    path.write_bytes(start + body)


BOMBS = {
    deflated_tiff: (".tif", "0.373 GiB"),
    tile_beyond_its_image: (".tif", "0.391 GiB"),
    jpeg_beyond_its_tile: (".tif", "20000 x 20000 pixels"),
    zipped_nifti: (".nii.gz", "0.373 GiB"),
    nifti_with_a_vast_extension: (".nii.gz", "16 MiB"),
    png_of_a_header: (".png", "1.49 GiB"),
    dicom_of_many_frames: (".dcm", "0.466 GiB"),
    dicom_picture_beyond_its_frame: (".dcm", "damaged"),
    deflated_dicom: (".dcm", "Deflated"),
}
MEASURE = """
import sys
from pathlib import Path
from tests.faults.mutants import grown
from nissl.imageio.formats import read_header, read_raster
from nissl.errors import DataError
sound, path = map(Path, sys.argv[1:])
read_raster(sound)
before = grown()
for read in (read_header, lambda path: read_raster(path, 0.1)):
    try:
        read(path)
    except DataError as error:
        print(str(error).replace(chr(10), " "))
print(grown() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does it")
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_f29_a_file_that_would_expand_is_refused_from_its_header(bomb, tmp_path):
    kind, said = BOMBS[bomb]
    path, sound = tmp_path / f"bomb{kind}", tmp_path / f"sound{kind}"
    bomb(path)
    write_file(sound, noise(32, 32)) if kind == ".dcm" else write_image(sound, noise(1, 32, 32))
    assert path.stat().st_size < 4e6
    shown, errors = child("-c", MEASURE, sound, path).communicate(timeout=60)
    *messages, growth = shown.splitlines()
    assert messages and said in messages[-1], errors
    if "GiB" in said:
        assert "at most 0.1 GiB" in messages[-1] and "--data.limit-gib" in messages[-1]
    print(f"{bomb.__name__}: {path.stat().st_size / 1e3:.0f} kB, memory grew by {int(growth) / 1e6:.1f} MB")
    assert int(growth) < 50e6


def test_f29_a_picture_that_claims_more_than_its_tile_is_refused_where_parts_are_read(tmp_path):
    """A region decodes one tile, which would take 1.2 GB."""
    jpeg_beyond_its_tile(tmp_path / "bomb.tif")
    before = grown()
    refused = pytest.raises(DataError, match=r"bomb\.tif\n  found: .*20000 x 20000 pixels")
    with refused, open_raster(tmp_path / "bomb.tif") as raster:
        raster.pixels[:, :8, :8]
    assert grown() - before < 50e6
