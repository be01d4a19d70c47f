"""Images of every kind that people have: their values, or an error that names the image."""

import struct
from io import BytesIO

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from hf_zipit.data.decode import decode, with_channels
from hf_zipit.data.images import open_images
from hf_zipit.errors import DataError, OptionError
from tests.data.test_images import pixel


def stored(image, kind="PNG", **options):
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(content, channels=3):
    said = []
    image = with_channels(decode(content, said.append), channels, said.append)
    return np.asarray(image), said


def column(cells):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": cells}, features=features)


def damaged():
    """Five images, of which numbers 1 and 3 are damaged."""
    whole = [stored(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(5)]
    return column([{"bytes": content[:50] if i in (1, 3) else content} for i, content in enumerate(whole)])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_sixteen_bits_are_scaled_to_eight(dtype):
    values, said = read(stored(Image.fromarray(np.array([[0, 32768, 65535]], dtype=dtype)), "TIFF"))
    assert values[0, :, 0].tolist() == [0, 128, 255]
    assert said == ["its values are scaled to eight bits"]


def test_floats_from_zero_to_one_are_scaled():
    values, said = read(stored(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"))
    assert values[0, :, 0].tolist() == [0, 128, 255]
    assert said


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
def test_floats_of_another_range_are_refused(value):
    image = Image.fromarray(np.array([[0, value]], dtype=np.float32))
    with pytest.raises(DataError, match="floating point values from .*; only 0 to 1 have a known meaning"):
        read(stored(image, "TIFF"))


def test_integers_beyond_sixteen_bits_are_refused():
    with pytest.raises(DataError, match="32-bit values from 0 to 70000"):
        read(stored(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_every_mode_becomes_grey_or_rgb(mode):
    colours = Image.new("RGB", (2, 2), (200, 200, 200))
    image = colours.convert("P").convert("PA") if mode == "PA" else colours.convert(mode)
    assert np.asarray(with_channels(image, 3, lambda _: None)).shape == (2, 2, 3)
    assert np.asarray(with_channels(image, 1, lambda _: None)).shape == (2, 2)


def test_a_mode_that_cannot_be_converted_is_refused():
    with pytest.raises(DataError, match="conversion from La to L not supported"):
        with_channels(Image.new("La", (2, 2)), 3, lambda _: None)


def test_two_and_four_channels_must_be_there():
    assert read(stored(Image.new("LA", (2, 2))), 2)[0].shape == (2, 2, 2)
    assert read(stored(Image.new("RGBA", (2, 2))), 4)[0].shape == (2, 2, 4)
    assert read(stored(Image.new("CMYK", (2, 2)), "TIFF"), 4)[0].shape == (2, 2, 4)
    with pytest.raises(DataError, match=r"it has 3 channels \(RGB\), and the models read 4"):
        read(stored(Image.new("RGB", (2, 2))), 4)
    with pytest.raises(DataError, match=r"it has 1 channels \(L\), and the models read 2"):
        read(stored(Image.new("L", (2, 2))), 2)


def test_transparency_is_dropped_and_told():
    values, said = read(stored(Image.new("RGBA", (2, 2), (10, 20, 30, 0))))
    assert values[0, 0].tolist() == [10, 20, 30]
    assert said == ["it is partly transparent; its transparency is dropped"]
    assert read(stored(Image.new("RGBA", (2, 2), (10, 20, 30, 255))))[1] == []


def test_the_first_frame_is_used_and_told():
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    values, said = read(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert values[0, 0, 0] == 10
    assert said == ["it has 2 frames; the first is used"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_datasets_does(orientation):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(image, "PNG", exif=exif)
    own = datasets.Image().decode_example({"bytes": content, "path": None})
    assert np.array_equal(read(content, 1)[0], np.asarray(own))


def test_damaged_metadata_do_not_damage_an_image():
    ifd = struct.pack("<H", 2) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    ifd += struct.pack("<HHII", 0x011A, 10, 1, 38) + bytes(4)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd + struct.pack("<ii", -1, 0)
    assert read(stored(Image.new("RGB", (6, 4)), "JPEG", exif=exif))[0].shape == (6, 4, 3)


def test_what_pillow_refuses_is_named():
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "x" * 3_000_000, zip=True)
    with pytest.raises(DataError, match="Decompressed data too large"):
        read(stored(Image.new("RGB", (2, 2)), pnginfo=info))
    with pytest.raises(DataError, match="decompression bomb"):
        read(stored(Image.new("1", (20_000, 10_000))))
    with pytest.raises(DataError, match="it is no image in a format that Pillow reads"):
        read(b"")


def test_a_bad_image_is_named_by_its_number_in_the_data_set():
    images = open_images(damaged(), pixel, num_images=4, seed=0)
    with pytest.raises(DataError, match=r"the given dataset: image [13] cannot be read: .*truncated.*skip_bad_images"):
        [images[i] for i in range(4)]


def test_a_row_without_image_is_named():
    rows = column([{"bytes": stored(Image.new("RGB", (2, 2)))}, None])
    with pytest.raises(DataError, match="image 1 cannot be read: the row has no image"):
        open_images(rows, pixel)[1]


def test_a_missing_file_is_named(tmp_path):
    rows = column([{"path": str(tmp_path / "gone.png")}])
    with pytest.raises(DataError, match=r"image 0 \(.*gone.png\) cannot be read: No such file"):
        open_images(rows, pixel)[0]


def test_bad_images_are_left_out_and_counted(caplog):
    images = open_images(damaged(), pixel, skip_bad_images=2)
    assert len(images) == 3
    assert [round(images[i][0].max().item() * 255) for i in range(3)] == [0, 2, 4]
    assert images.asked == 5
    assert "2 of 5 images cannot be read and are left out: image 1: " in caplog.text


def test_more_bad_images_than_tolerated_are_an_error():
    with pytest.raises(DataError, match="2 of 5 images cannot be read, and skip_bad_images is 1: image 1: .*; image 3"):
        open_images(damaged(), pixel, skip_bad_images=1)
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        open_images(damaged().select([1, 3]), pixel, skip_bad_images=5)
    with pytest.raises(OptionError, match="skip_bad_images is -1"):
        open_images(damaged(), pixel, skip_bad_images=-1)


def test_images_of_different_sizes_are_refused():
    rows = column([{"bytes": stored(Image.new("RGB", (size, 2)))} for size in (2, 3)])
    images = open_images(rows, pixel)
    assert images[0].shape == (3, 2, 2)
    with pytest.raises(DataError, match=r"image 1 gives pixels of the shape \(3, 2, 3\), others \(3, 2, 2\)"):
        images[1]


def test_a_data_set_is_read_without_its_transform_and_format():
    rows = column([{"bytes": stored(Image.new("RGB", (2, 2), (i, 0, 0)))} for i in range(2)])

    def training(batch):
        del batch["image"]
        return batch

    for data in (rows, rows.with_transform(training), rows.with_format("torch"), rows.with_format("numpy")):
        images = open_images(data, pixel)
        assert images[1][0].max().item() == pytest.approx(1 / 255)


def test_a_column_of_pixels():
    pixels = torch.arange(36.0).reshape(3, 6, 2, 1)
    rows = datasets.Dataset.from_dict({"pixel_values": pixels.tolist(), "label": [0, 1, 0]})
    images = open_images(rows, None, channels=6)
    assert torch.equal(images[2], pixels[2])


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    file = tmp_path / "a.png"

    def mark(value):
        Image.new("L", (2, 2), value).save(file)
        return open_images(column([{"path": str(file)}]), pixel).fingerprint()

    assert mark(1) == mark(1)
    assert mark(1) != mark(2)
    in_memory = [column([{"bytes": stored(Image.new("L", (2, 2), value))}]) for value in (1, 1, 2)]
    same, again, other = (open_images(rows, pixel).fingerprint() for rows in in_memory)
    assert same == again
    assert same != other
