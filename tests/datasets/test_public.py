import dataclasses
import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.server import Server

from nissl.config import DataConfig
from nissl.data.cases import load_case
from nissl.data.check import Accepted, check
from nissl.data.discovery import find_cases
from nissl.datasets import download, public
from nissl.datasets.public import PUBLIC, fetch, read_nrrd
from nissl.errors import DataError, InputError, ResourceError
from nissl.imageio.formats import read_raster, write_image, write_mask

RNG = np.random.default_rng(0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    running = Server()
    yield running
    running.close()


def encode(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def colours(height=24, width=32, channels=3):
    return RNG.integers(0, 255, (height, width, channels), dtype=np.uint8)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def nrrd(pixels, *, encoding="gzip", directions=True):
    """A volume as the challenge writes it: fastest axis first."""
    names = {"uint8": "unsigned char", "int16": "short", "float32": "float"}
    lines = ["NRRD0004", "# a comment", f"type: {names[str(pixels.dtype)]}", "dimension: 3"]
    lines += [f"sizes: {' '.join(map(str, pixels.shape))}", f"encoding: {encoding}", "endian: little"]
    lines += ["space directions: (0.625,0,0) (0,0.625,0) (0,0,1.25)"] if directions else ["spacings: 0.625 0.625 1.25"]
    raw = pixels.tobytes(order="F")
    return ("\n".join(lines) + "\n\n").encode() + (gzip.compress(raw) if encoding == "gzip" else raw)


def glas():
    files = {"Warwick QU/Grade.csv": "name, patient ID, grade (GlaS), grade (other)\r\n"}
    for name, patient in (("train_1", 3), ("train_2", 4), ("testA_1", 3), ("testB_1", 5)):
        files["Warwick QU/Grade.csv"] += f"{name}, {patient}, benign, adenomatous\r\n"
        glands = np.zeros((24, 32), np.uint8)
        glands[2:8, 3:9], glands[12:20, 15:30] = 1, 2
        files[f"Warwick QU/{name}.bmp"] = encode(colours(), "BMP")
        files[f"Warwick QU/{name}_anno.bmp"] = encode(glands, "BMP")
    return zipped(files)


def dsb2018():
    files = {}
    for name in ("0a7e06", "1b44d2"):
        files[f"{name}/images/{name}.png"] = encode(np.dstack([colours(), np.full((24, 32), 255, np.uint8)]), "PNG")
        for number in range(3):
            nucleus = np.zeros((24, 32), np.uint8)
            nucleus[number * 8 : number * 8 + 5, 4:10] = 255
            files[f"{name}/masks/{number}{name}.png"] = encode(nucleus, "PNG")
    return zipped(files)


def kvasir():
    files = {"Kvasir-SEG/kavsir_bboxes.json": "{}"}
    for name in ("cju0", "cju1"):
        polyp = np.zeros((40, 48, 3), np.uint8)
        polyp[10:30, 12:36] = 255
        files[f"Kvasir-SEG/images/{name}.jpg"] = encode(colours(40, 48), "JPEG")
        files[f"Kvasir-SEG/masks/{name}.jpg"] = encode(polyp, "JPEG")
    return zipped(files)


def hippocampus(tmp_path):
    files, task = {}, "Task04_Hippocampus"
    table = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "modality": {"0": "MRI"}}
    table["training"] = [{"image": f"./imagesTr/h_{n}.nii.gz", "label": f"./labelsTr/h_{n}.nii.gz"} for n in range(2)]
    files[f"{task}/dataset.json"] = json.dumps(table).encode()
    for number in range(2):
        path = tmp_path / "volume.nii.gz"
        write_image(path, RNG.random((1, 18, 20, 22), dtype=np.float32), (1.0, 1.0, 1.0))
        files[f"{task}/imagesTr/h_{number}.nii.gz"] = path.read_bytes()
        files[f"{task}/imagesTr/._h_{number}.nii.gz"] = b"left by a Mac"
        labels = np.zeros((18, 20, 22), np.uint8)
        labels[4:9, 4:9, 4:9], labels[9:14, 4:9, 4:9] = 1, 2
        write_mask(path, labels, read_raster(path))
        files[f"{task}/labelsTr/h_{number}.nii.gz"] = path.read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def atrium():
    files = {}
    for side, name in (("Training Set", "0RZDK2"), ("Training Set", "1D7CUD"), ("Testing Set", "4URSJY")):
        volume = RNG.integers(0, 255, (16, 18, 20), dtype=np.uint8)
        cavity = np.zeros_like(volume)
        cavity[4:12, 3:9, 5:15] = 255
        files[f"2018_UTAH_MICCAI/{side}/{name}/lgemri.nrrd"] = nrrd(volume)
        files[f"2018_UTAH_MICCAI/{side}/{name}/laendo.nrrd"] = nrrd(cavity)
    return zipped(files)


def offer(monkeypatch, server, name, content, **changes):
    server.content = content
    monkeypatch.setitem(PUBLIC, name, dataclasses.replace(PUBLIC[name], url=server.url, checksum=None, **changes))


def yes(_):
    return True


# Terms


def test_every_entry_says_where_it_is_and_under_which_terms():
    assert set(PUBLIC) == {"glas", "dsb2018", "kvasir-seg", "msd-hippocampus", "la2018"}
    for name, dataset in PUBLIC.items():
        text = str(dataset)
        assert all(part in text for part in (name, dataset.page, dataset.licence, dataset.citation))
        assert dataset.url or "by hand" in text
        assert dataset.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", dataset.checksum)
        assert (dataset.checksum or "none is published") in text


def test_terms_are_shown_and_nothing_is_loaded_without_consent(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "kvasir-seg", kvasir())
    shown = []
    with pytest.raises(InputError, match="not accepted"):
        fetch("kvasir-seg", tmp_path / "data", accept=lambda text: bool(shown.append(text)))
    assert "research and educational" in shown[0] and server.url in shown[0]
    assert server.asked == [] and not (tmp_path / "data").exists()


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(InputError, match="did you mean `kvasir-seg`"):
        fetch("kvasir", tmp_path / "data", accept=yes)


def test_a_set_without_address_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="--archive FILE") as caught:
        fetch("la2018", tmp_path / "data", accept=yes)
    assert PUBLIC["la2018"].page in str(caught.value)


# Arrangement: each archive in its publisher's layout becomes cases that pass the check


@pytest.mark.parametrize(
    ("name", "make", "cases"), [("glas", glas, 4), ("dsb2018", dsb2018, 2), ("kvasir-seg", kvasir, 2)]
)
def test_an_archive_becomes_cases_that_pass_the_check(server, monkeypatch, tmp_path, name, make, cases):
    offer(monkeypatch, server, name, make())
    folder = fetch(name, tmp_path / "data", accept=yes)
    config = DataConfig(label_map=PUBLIC[name].label_map)
    dataset = find_cases(folder, config)
    assert (len(dataset.cases), dataset.dims, dataset.channels) == (cases, 2, 3)
    assert all(case.target for case in dataset.cases)
    assert not check(folder, config, accepted=Accepted(shared_groups=True)).errors  # GlaS shares patients, officially
    for file in dataset.cases:
        assert set(np.unique(load_case(file, dataset.label_map).target)) == {0, 1}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_glas_keeps_instances_patients_and_the_official_split(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "glas", glas())
    folder = fetch("glas", tmp_path / "data", accept=yes)
    assert set(np.unique(read_raster(folder / "masks" / "train_1.png").pixels)) == {0, 1, 2}
    cases = {case.id: (case.group, case.split) for case in find_cases(folder, DataConfig(label_map="binary")).cases}
    assert cases["train_1"] == ("patient3", "train")
    assert cases["testA_1"] == ("patient3", "test")
    assert cases["testB_1"] == ("patient5", "test")


def test_nuclei_are_merged_into_one_label_image_without_alpha(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "dsb2018", dsb2018())
    folder = fetch("dsb2018", tmp_path / "data", accept=yes)
    labels = read_raster(folder / "masks" / "0a7e06.png").pixels[0]
    assert [int((labels == number).sum()) for number in range(1, 4)] == [30, 30, 30]
    assert read_raster(folder / "images" / "0a7e06.png").pixels.shape == (3, 24, 32)


def test_jpeg_masks_are_cut_at_half(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "kvasir-seg", kvasir())
    folder = fetch("kvasir-seg", tmp_path / "data", accept=yes)
    polyp = np.zeros((40, 48), bool)
    polyp[10:30, 12:36] = True
    assert (read_raster(folder / "masks" / "cju0.png").pixels[0].astype(bool) != polyp).mean() < 0.02


def test_the_decathlon_stays_as_it_is(server, monkeypatch, tmp_path):
    content = hippocampus(tmp_path)
    offer(monkeypatch, server, "msd-hippocampus", content)
    dataset = find_cases(fetch("msd-hippocampus", tmp_path / "data", accept=yes), DataConfig())
    assert (dataset.layout, dataset.dims, len(dataset.cases)) == ("decathlon", 3, 2)
    assert dataset.label_map.names == ("background", "Anterior", "Posterior")


def test_the_atrium_is_converted_from_an_archive_at_hand(tmp_path):
    archive = tmp_path / "2018_UTAH_MICCAI.zip"
    archive.write_bytes(atrium())
    folder = fetch("la2018", tmp_path / "data", accept=yes, archive=archive)
    dataset = find_cases(folder, DataConfig())
    assert archive.exists()
    assert {case.id: case.split for case in dataset.cases} == {"0RZDK2": "train", "1D7CUD": "train", "4URSJY": "test"}
    case = load_case(dataset.cases[0], dataset.label_map)
    assert case.image.shape == (1, 16, 18, 20) and case.spacing == (0.625, 0.625, 1.25)
    assert case.target[4:12, 3:9, 5:15].all() and case.target.sum() == 8 * 6 * 10


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize(("encoding", "directions"), [("raw", True), ("gzip", False)])
def test_nrrd_volumes_come_back_as_written(tmp_path, dtype, encoding, directions):
    volume = RNG.integers(0, 100, (5, 6, 7)).astype(dtype)
    (tmp_path / "v.nrrd").write_bytes(nrrd(volume, encoding=encoding, directions=directions))
    pixels, spacing = read_nrrd(tmp_path / "v.nrrd")
    assert pixels.dtype == dtype and np.array_equal(pixels, volume) and spacing == (0.625, 0.625, 1.25)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda content: content[:-40], "v.nrrd"),
        (lambda content: content.replace(b"gzip", b"bzip2"), "bzip2"),
        (lambda content: content.replace(b"sizes: 5 6 7", b"sizes: 9000 9000 9000"), "9000"),
        (lambda content: b"", "NRRD"),
        (lambda content: b"\x89PNG\r\n" + content, "NRRD"),
    ],
)
def test_nrrd_that_cannot_be_read_is_named(tmp_path, change, found):
    (tmp_path / "v.nrrd").write_bytes(change(nrrd(RNG.integers(0, 100, (5, 6, 7)).astype(np.int16))))
    with pytest.raises(DataError, match=found):
        read_nrrd(tmp_path / "v.nrrd")


# Integrity


def test_a_download_that_differs_from_the_published_checksum_is_refused(server, monkeypatch, tmp_path):
    content = kvasir()
    offer(monkeypatch, server, "kvasir-seg", content)
    right = f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}"
    monkeypatch.setitem(PUBLIC, "kvasir-seg", dataclasses.replace(PUBLIC["kvasir-seg"], checksum=right))
    server.content = content[:-1] + b"x"
    with pytest.raises(DataError, match="published md5") as caught:
        fetch("kvasir-seg", tmp_path / "data", accept=yes)
    assert right.removeprefix("md5:") in str(caught.value)
    assert not list((tmp_path / "data").iterdir())
    server.content = content
    fetch("kvasir-seg", tmp_path / "data", accept=yes)
    record = json.loads((tmp_path / "data" / "source.json").read_text())
    assert record["sha256_origin"] == f"the host states {right}"


def test_without_a_published_checksum_the_first_download_is_recorded_and_compared(server, monkeypatch, tmp_path):
    content, folder = kvasir(), tmp_path / "data"
    offer(monkeypatch, server, "kvasir-seg", content)
    fetch("kvasir-seg", folder, accept=yes)
    record = json.loads((folder / "source.json").read_text())
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert "no checksum is published" in record["sha256_origin"]
    assert all(record[key] == getattr(PUBLIC["kvasir-seg"], key) for key in ("url", "licence", "citation"))
    for path in sorted((folder / "images").iterdir()) + sorted((folder / "masks").iterdir()):
        path.unlink()
    (folder / "images").rmdir()
    (folder / "masks").rmdir()
    server.content = kvasir()
    with pytest.raises(DataError, match="sha256 of the first download"):
        fetch("kvasir-seg", folder, accept=yes)


def test_a_broken_download_is_resumed_by_the_next_call(server, monkeypatch, tmp_path):
    content = kvasir()
    offer(monkeypatch, server, "kvasir-seg", content)
    server.breaks = [1000] + [0] * 10
    with pytest.raises(ResourceError):
        fetch("kvasir-seg", tmp_path / "data", accept=yes)
    server.breaks, server.asked = [], []
    fetch("kvasir-seg", tmp_path / "data", accept=yes)
    assert server.asked == ["bytes=1000-"]
    assert len(list((tmp_path / "data" / "images").iterdir())) == 2


def test_a_complete_set_is_left_alone(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "kvasir-seg", kvasir())
    fetch("kvasir-seg", tmp_path / "data", accept=yes)
    server.asked.clear()
    (tmp_path / "data" / "images" / "mine.txt").write_text("mine")
    fetch("kvasir-seg", tmp_path / "data", accept=lambda _: False)
    assert server.asked == [] and (tmp_path / "data" / "images" / "mine.txt").exists()


def test_an_interruption_while_arranging_is_made_good(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "kvasir-seg", kvasir())
    whole = public.PUBLIC["kvasir-seg"].arrange

    def stopped(source, target):
        whole(source, target)
        raise KeyboardInterrupt

    monkeypatch.setitem(PUBLIC, "kvasir-seg", dataclasses.replace(PUBLIC["kvasir-seg"], arrange=stopped))
    with pytest.raises(KeyboardInterrupt):
        fetch("kvasir-seg", tmp_path / "data", accept=yes)
    assert not (tmp_path / "data" / "images").exists()
    monkeypatch.setitem(PUBLIC, "kvasir-seg", dataclasses.replace(PUBLIC["kvasir-seg"], arrange=whole))
    fetch("kvasir-seg", tmp_path / "data", accept=yes)
    assert len(server.asked) == 1
    assert len(find_cases(tmp_path / "data", DataConfig()).cases) == 2


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt"):
        fetch("dsb2018", tmp_path, accept=yes)
    with pytest.raises(InputError, match="a file"):
        fetch("dsb2018", tmp_path / "notes.txt", accept=yes)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_another_set_is_refused(server, monkeypatch, tmp_path):
    offer(monkeypatch, server, "kvasir-seg", kvasir())
    fetch("kvasir-seg", tmp_path / "data", accept=yes)
    with pytest.raises(InputError, match="data set kvasir-seg"):
        fetch("glas", tmp_path / "data", accept=yes)


def test_an_archive_of_another_set_is_named_with_what_it_holds(tmp_path):
    (tmp_path / "a.zip").write_bytes(kvasir())
    with pytest.raises(DataError, match="Kvasir-SEG") as caught:
        fetch("glas", tmp_path / "data", accept=yes, archive=tmp_path / "a.zip")
    assert "train_1" in str(caught.value)
    assert (tmp_path / "a.zip").exists()


def test_an_archive_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.zip"):
        fetch("glas", tmp_path / "data", accept=yes, archive=tmp_path / "absent.zip")
