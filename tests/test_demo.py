"""The demo is the whole job, from nothing to a page."""

import dataclasses

import pytest

from nissl import demo
from nissl.config import DataConfig, TrainConfig
from nissl.nets.settings import UNet


def test_the_demo_ends_with_a_page_and_a_mask_for_every_image(tmp_path, monkeypatch):
    small = dataclasses.replace(
        demo.SETTINGS,
        data=DataConfig(size=(32,)),
        net=UNet(widths=(4, 8), dropout=(0.0, 0.0)),
        train=TrainConfig(steps=3),
    )
    monkeypatch.setattr(demo, "SETTINGS", small)
    monkeypatch.setattr(demo, "IMAGES", 20)
    page = demo.demo(tmp_path / "demo")
    assert page.is_file() and "test images" in page.read_text()
    images = sorted(path.name for path in (tmp_path / "demo" / "phantoms" / "images").iterdir())
    assert sorted(path.name for path in (tmp_path / "demo" / "masks").glob("*.png")) == images


def test_the_demo_goes_to_the_first_free_folder_and_overwrites_nothing(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(demo, "write_phantoms", lambda folder, *others, **named: made.append(folder.parent))
    monkeypatch.setattr(demo.api, "train", lambda *others: 1 / 0)  # what comes after is no matter here
    for there in ("", "-2"):
        (tmp_path / f"demo{there}").mkdir()
    with pytest.raises(ZeroDivisionError):
        demo.demo(tmp_path / "demo")
    assert made == [tmp_path / "demo-3"]
