"""Pictures: preparation against independent oracles, order, labels, and every kind of bad file."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

from edgecompile.data import image_from_huggingface, open_dataset, parse_image
from edgecompile.data.images import find_images, fit, read_image, to_tensor
from edgecompile.data.preprocess import INTERPOLATIONS, Image, image_from_dict
from edgecompile.errors import InputError, SpecError
from edgecompile.program import Program

SMALL = Image((8, 8), "squash", "nearest")


class Classifier(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ torch.ones(3, 4)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program.capture(Classifier(), {"x": torch.zeros(2, 3, 8, 8)})


def save(path: Path, size: tuple[int, int] = (12, 9), mode: str = "RGB", seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pillow.fromarray(np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3), np.uint8))
    picture.convert(mode).save(path)
    return path


images = st.builds(
    lambda size, more, way, mean, std: Image(size, max(size) + more if more else 0, way, mean, std),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 20),
    st.sampled_from(INTERPOLATIONS),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.1, 1)] * 3),
)


@given(images, st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=80)
def test_any_picture_comes_out_at_its_size(image: Image, width: int, height: int) -> None:
    made = fit(pillow.new("RGB", (width, height), (10, 200, 30)), image, "p")
    assert made.size == image.size[::-1]
    x = to_tensor(made, image)
    want = (torch.tensor([10, 200, 30]) / 255 - torch.tensor(image.mean)) / torch.tensor(image.std)
    torch.testing.assert_close(x, want[:, None, None].expand(3, *image.size), atol=1e-4, rtol=1e-4)


@given(images)
def test_json_round_trip(image: Image) -> None:
    assert image_from_dict(json.loads(json.dumps(image.as_dict()))) == image


def test_text_form() -> None:
    text = "size=224,crop=center,resize=256,interpolation=bicubic,mean=0.485/0.456/0.406,std=0.2/0.3/0.4,scale=1/255"
    assert parse_image(text) == Image((224, 224), 256, "bicubic", (0.485, 0.456, 0.406), (0.2, 0.3, 0.4))
    assert parse_image("size=32x64, crop=none, channels=1") == Image((32, 64), "squash", channels=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--image: size is missing: say size=224"),
        ("224", "--image: '224' is not option=value"),
        ("size=224,meen=0.5", "unknown option 'meen'; did you mean mean?"),
        ("size=224,size=3", "size is given twice"),
        ("size=big", "size=big is not understood"),
        ("size=0", "size 0x0 is not height x width"),
        ("size=1x2x3", "size 1x2x3 is not height x width"),
        ("size=8,std=0", "must be above 0"),
        ("size=8,mean=1/2", "mean has 2 values for 3 channels"),
        ("size=8,interpolation=bicubik", "unknown interpolation 'bicubik'; did you mean bicubic?"),
        ("size=8,resize=4", "resize 4 is less than the size 8x8"),
        ("size=8,crop=left", "crop 'left'; known: center, none"),
        ("size=8,crop=none,resize=9", "crop=none needs resize=squash"),
        ("size=8,crop=center,resize=squash", "crop=center leaves nothing to crop"),
        ("size=8,layout=chw", "layout 'chw'"),
        ("size=8,channels=4", "4 channels; 1 (grey) and 3"),
        ("size=8,scale=1/0", "scale=1/0 is not understood"),
    ],
)
def test_text_errors(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_image(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["ViTImageProcessorPil", "CLIPImageProcessorPil", "ConvNextImageProcessorPil"])
def test_hugging_face_folders_prepare_as_transformers_does(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    processor = (
        getattr(transformers, kind)(size={"shortest_edge": 40}) if "Conv" in kind else getattr(transformers, kind)()
    )
    processor.save_pretrained(tmp_path)
    image = image_from_huggingface(tmp_path / "preprocessor_config.json")
    file = save(tmp_path / "p.png", (300, 260))
    want = processor(pillow.open(file), return_tensors="pt")["pixel_values"][0]
    found = read_image(file, image)
    assert found.shape == want.shape
    assert float((found - want).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_pad": True}, "do_pad is not supported: say how pictures are prepared with --image"),
        ({"size": {"longest_edge": 3}}, "size.longest_edge gives pictures of many shapes"),
        ({"size": "big"}, "size 'big' is not understood: say how"),
        ({"size": 8, "image_mean": [1, 2], "image_std": [1, 1]}, "mean has 2 values for 3 channels"),
        ({"size": 8, "resample": 9}, "say how pictures are prepared with --image"),
        ([], "holds a list where an object is expected"),
    ],
)
def test_hugging_face_errors(config: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        image_from_huggingface(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_upright_and_colours(tmp_path: Path) -> None:
    turned = pillow.new("RGB", (6, 4), "red")
    turned.putpixel((0, 0), (0, 0, 255))
    exif = pillow.Exif()
    exif[0x0112] = 6  # the top is on the right
    turned.save(tmp_path / "t.png", exif=exif)
    upright = read_image(tmp_path / "t.png", Image((6, 4), "none"))
    assert upright[:, 0, 3].tolist() == [0, 0, 1]
    assert upright[:, 0, 0].tolist() == [1, 0, 0]
    for mode, suffix in (("L", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")):
        assert read_image(save(tmp_path / f"m_{mode}.{suffix}", mode=mode), SMALL).shape == (3, 8, 8)
    deep = np.full((8, 8), 32896, np.uint16)
    pillow.fromarray(deep).save(tmp_path / "deep.png")
    assert float(read_image(tmp_path / "deep.png", SMALL).mean()) == pytest.approx(128 / 255, abs=1e-3)
    grey = read_image(save(tmp_path / "g.png"), Image((8, 8), "squash", channels=1, layout="nhwc"))
    assert grey.shape == (8, 8, 1)
    flipped = read_image(tmp_path / "t.png", Image((6, 4), "none", order="bgr"))
    assert torch.equal(flipped, upright.flip(0))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bomb.png", png(60000, 60000), "(a decompression bomb?): leave it out"),
        ("large.png", png(11000, 11000), "(a decompression bomb?): leave it out"),
        ("zero.png", png(0, 5), "not a picture that can be decoded"),
        ("empty.jpg", b"", "not a picture that can be decoded"),
        ("text.jpg", b"hello", "not a picture that can be decoded"),
        (
            "code.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not a picture that can be decoded",
        ),
        ("cut.png", png(50, 50), "not a picture that can be decoded"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_bad_pictures(name: str, data: bytes, message: str, tmp_path: Path, program: Program) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(open_dataset(str(tmp_path), program, {"image": SMALL}))
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_formats_that_nobody_photographs_in_are_not_decoded(tmp_path: Path) -> None:
    pillow.new("RGB", (9, 9)).save(tmp_path / "p.png", format="PCX")
    with pytest.raises(InputError, match=r"p\.png: not a picture that can be decoded"):
        read_image(tmp_path / "p.png", SMALL)


def test_a_truncated_jpeg(tmp_path: Path) -> None:
    file = save(tmp_path / "p.jpg", (200, 200))
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(InputError, match="truncated"):
        read_image(file, SMALL)
    with pytest.raises(InputError, match="12x9 pixels, less than the 20x20 to be cropped"):
        read_image(save(tmp_path / "s.png"), Image((20, 20), "none"))


def test_order_hidden_files_and_loops(tmp_path: Path, program: Program) -> None:
    for seed, name in enumerate(("b.png", "a/z.png", ".hidden.png", "a/.c/d.png", "c.jpg")):
        save(tmp_path / name, seed=seed)
    (tmp_path / "notes.md").write_text("x")
    found, _ = find_images(tmp_path)
    assert [f.relative_to(tmp_path).as_posix() for f in found] == ["a/z.png", "b.png", "c.jpg"]
    data = open_dataset(str(tmp_path), program, {"image": SMALL.as_dict()}, batch_size=2)
    assert [b.size for b in data] == [2, 1]
    assert "1 files are no pictures and were left out, e.g. notes.md" in data.notes[0]
    assert not data.labelled
    before = data.digest
    assert open_dataset(str(tmp_path), program, {"image": SMALL}, batch_size=2).digest == before
    save(tmp_path / "b.png", seed=9)
    assert open_dataset(str(tmp_path), program, {"image": SMALL}, batch_size=2).digest != before
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    with pytest.raises(InputError, match="a link that leads back to a folder above it"):
        find_images(tmp_path)


def test_without_preparation_a_folder_is_refused(tmp_path: Path, program: Program) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        open_dataset(str(tmp_path), program)
    assert caught.value.exit_code == 2
    for way in ("a teacher that ships with it", "preprocessor_config.json", "--image size=224"):
        assert way in str(caught.value)
    with pytest.raises(InputError, match=r"prepared as \[3, 9, 9\], the model takes float32 \[n, 3, 8, 8\]"):
        open_dataset(str(tmp_path), program, {"image": Image((9, 9))})
    (tmp_path / "e").mkdir()
    with pytest.raises(InputError, match="no pictures found"):
        open_dataset(str(tmp_path / "e"), program, {"image": SMALL})


def test_labels_from_folders(tmp_path: Path, program: Program) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        save(tmp_path / "n" / name)
    data = open_dataset(str(tmp_path / "n"), program, {"image": SMALL})
    assert [b.targets.tolist() for b in data if b.targets is not None] == [[0, 1, 1]]
    for name in ("3/1.png", "1/1.png"):
        save(tmp_path / "d" / name)
    data = open_dataset(str(tmp_path / "d"), program, {"image": SMALL})
    assert [b.targets.tolist() for b in data if b.targets is not None] == [[1, 3]]
    save(tmp_path / "d" / "2019" / "1.png")
    with pytest.raises(InputError, match="label 2019 for a model of 4 classes"):
        open_dataset(str(tmp_path / "d"), program, {"image": SMALL})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 1\n", "no label for 1 of 2 pictures, e.g. s/b.png: add them"),
        ("a.png 1\nb.png cat\n", "line 2: label 'cat' is not an integer"),
        ("a.png 1\nb.png 4\n", "line 2: label 4 is out of range 0..3"),
        ("a.png 1\nb.png -1\n", "line 2: label -1 is out of range 0..3"),
        ("a.png 1\nb.png 1\nc.png 1\n", "line 3: c.png is not in"),
        ("a.png 1\nb.png 1\na.png 2\n", "line 3: a.png has label 2, and another on line 1"),
        ("a.png 1\nb.png 1.5\n", "line 2: label '1.5' is not an integer"),
        ("1\n", "line 1: '1' is not 'name label' or 'name,label'"),
    ],
)
def test_bad_label_files(text: str, message: str, tmp_path: Path, program: Program) -> None:
    save(tmp_path / "p" / "a.png")
    save(tmp_path / "p" / "s" / "b.png")
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    with pytest.raises(InputError) as caught:
        open_dataset(str(tmp_path / "p"), program, {"image": SMALL}, labels)
    assert message in str(caught.value)
    assert str(labels) in str(caught.value)


def test_label_files(tmp_path: Path, program: Program) -> None:
    save(tmp_path / "a b.png")
    save(tmp_path / "s" / "b.png")
    labels = tmp_path / "labels.csv"
    for text in ("name,label\na b.png,3\ns/b.png,0\n", "b.png 0\na b.png 3\n", "a b.png\t3\r\nb.png\t0\r\n"):
        labels.write_text(text)
        data = open_dataset(str(tmp_path), program, {"image": SMALL}, labels)
        assert [b.targets.tolist() for b in data if b.targets is not None] == [[3, 0]]
        assert data.notes == ()
    labels.write_bytes(b"a.png 1\n\xff\xfe 2\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8 text"):
        open_dataset(str(tmp_path), program, {"image": SMALL}, labels)
