"""Golden file of images as a network sees them: decoded by Pillow, scaled and cut by torchvision."""

import io

import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from golden_file import TRAIN, write

NOTES = """
Files of images, and their red, green and blue planes after torchvision's Resize(resize) and CenterCrop(size) on
the RGB image of Pillow. PNG decodes to the same pixels everywhere; decoders of JPEG may differ in the last bits.
"""


def picture(height, width, seed):
    """Waves with some noise: smooth enough for JPEG, and nowhere flat."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 90 * np.sin(x / (5 + c) + c) * np.cos(y / (4 + c)) for c in range(3)]
    image = np.stack(planes, axis=2) + rng.normal(scale=6, size=(height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cases():
    rgb = Image.fromarray(picture(28, 40, 1))
    tall = Image.fromarray(picture(45, 21, 2))
    small = Image.fromarray(picture(7, 9, 3))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(picture(28, 40, 4)[:, :, 0]))
    yield "png", encoded(rgb, "PNG"), 28, 28
    yield "png_smaller", encoded(rgb, "PNG"), 18, 16
    yield "png_tall", encoded(tall, "PNG"), 13, 10
    yield "png_larger", encoded(small, "PNG"), 20, 17
    yield "png_grey", encoded(rgb.convert("L"), "PNG"), 14, 14
    yield "png_alpha", encoded(alpha, "PNG"), 14, 13
    yield "png_palette", encoded(rgb.quantize(32), "PNG"), 14, 14
    yield "jpeg_444", encoded(rgb, "JPEG", quality=90, subsampling=0), 28, 28
    yield "jpeg_420", encoded(rgb, "JPEG", quality=75), 28, 25
    yield "jpeg_smaller", encoded(rgb, "JPEG", quality=75), 18, 16
    yield "jpeg_progressive", encoded(tall, "JPEG", quality=85, progressive=True), 15, 15
    yield "jpeg_grey", encoded(rgb.convert("L"), "JPEG", quality=85), 14, 14


def main():
    rows = []
    for name, data, resize, size in cases():
        image = Image.open(io.BytesIO(data)).convert("RGB")
        seen = np.asarray(Compose([Resize(resize), CenterCrop(size)])(image))
        assert seen.shape == (size, size, 3)
        rows.append([name, resize, size, data.hex(), seen.transpose(2, 0, 1).tobytes().hex()])
    columns = ["case", "resize", "size", "file", "pixels"]
    write(TRAIN / "images.csv", ["pillow", "torchvision", "numpy"], NOTES, columns, rows)


main()
