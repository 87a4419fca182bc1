"""Preference pairs made of real photographs, as a parquet file in the layout of Pick-a-Pic v2. No download.

    python benchmarks/make_photo_pairs.py --num 200 --size 256 --output photo_pairs.parquet

Photographs that ship inside scikit-image and scikit-learn are cropped at random; the crop is the chosen
image, a degraded copy (blur, JPEG blocks, noise or a colour cast) the rejected one. Image 0 or image 1 is
preferred by a coin, as in the original; some rows are ties, some have no label.
"""

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_image

CAPTIONS = {
    "astronaut": "a portrait of an astronaut in an orange suit",
    "coffee": "a cup of coffee on a wooden table",
    "chelsea": "a close-up photo of a tabby cat",
    "rocket": "a rocket on the launch pad at night",
    "ihc": "a microscope picture of stained tissue",
    "retina": "a picture of a human retina",
    "hubble_deep_field": "galaxies seen by a space telescope",
    "motorcycle_left": "a motorcycle in a garage",
    "china": "a Chinese temple under a blue sky",
    "flower": "a dahlia in bloom, macro photo",
}
ENDINGS = ("", ", detailed", ", high quality photo", ", 35mm", ", natural light", " 📷")
DEGRADATIONS = ("blur", "blocks", "noise", "cast")


def photographs() -> dict[str, Image.Image]:
    """The photographs that are installed, by name."""
    found: dict[str, Image.Image] = {}
    for name in CAPTIONS:
        if name in ("china", "flower"):
            found[name] = Image.fromarray(load_sample_image(f"{name}.jpg"))
            continue
        # Only files inside the package: anything else would be fetched from the network.
        packaged = [Path(skimage.data.__file__).parent / f"{name}{end}" for end in (".png", ".jpg")]
        file = next((path for path in packaged if path.is_file()), None)
        if file is not None:
            found[name] = Image.open(file).convert("RGB")
    return found


def crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """A random window of the photograph, at `size` on its shorter side; its aspect ratio varies."""
    scale = random.uniform(0.5, 1.0)
    aspect = random.choice([1.0, 1.0, 4 / 3, 3 / 4])
    height = int(min(image.height, image.width / aspect) * scale)
    width = int(height * aspect)
    left, top = random.integers(0, image.width - width + 1), random.integers(0, image.height - height + 1)
    window = image.crop((left, top, left + width, top + height))
    factor = size / min(window.size)
    return window.resize((round(width * factor), round(height * factor)), Image.Resampling.LANCZOS)


def degrade(image: Image.Image, kind: str, random: np.random.Generator) -> Image.Image:
    """The same picture, worse."""
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(max(image.size) * random.uniform(0.008, 0.02)))
    if kind == "blocks":
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=int(random.integers(3, 9)))
        return Image.open(buffer).convert("RGB")
    if kind == "noise":
        values = np.asarray(image, dtype=np.float32)
        noisy = values + random.normal(0.0, random.uniform(25.0, 50.0), values.shape)
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    tinted = np.asarray(ImageEnhance.Color(image).enhance(0.3), dtype=np.float32)
    cast = np.ones(3, dtype=np.float32)
    cast[random.integers(0, 3)] = random.uniform(1.3, 1.6)
    return Image.fromarray(np.clip(tinted * cast * 0.85, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    """Encoded bytes."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_pairs(
    num: int, size: int, *, seed: int = 0, tie_share: float = 0.1, unlabelled_share: float = 0.05
) -> list[dict[str, object]]:
    """Records in the layout of Pick-a-Pic v2."""
    photos = photographs()
    names = sorted(photos)
    records: list[dict[str, object]] = []
    for number in range(num):
        random = np.random.default_rng([seed, number])
        name = names[number % len(names)]
        good = crop(photos[name], size, random)
        kind = DEGRADATIONS[int(random.integers(len(DEGRADATIONS)))]
        bad = degrade(good, kind, random)
        tie, labelled = random.random() < tie_share, random.random() >= unlabelled_share
        first_wins = bool(random.integers(2))
        images = [jpeg(good), jpeg(bad)] if first_wins else [jpeg(bad), jpeg(good)]
        label = 0.5 if tie else float(first_wins)
        uids = [f"{name}-{number:06d}-{side}" for side in (0, 1)]
        records.append(
            {
                "caption": CAPTIONS[name] + ENDINGS[int(random.integers(len(ENDINGS)))],
                "jpg_0": images[0],
                "jpg_1": images[1],
                "label_0": label,
                "label_1": 1.0 - label,
                "has_label": labelled,
                "are_different": True,
                "image_0_uid": uids[0],
                "image_1_uid": uids[1],
                "best_image_uid": "tie" if tie else uids[0 if first_wins else 1],
                "model_0": "photograph" if first_wins else kind,
                "model_1": kind if first_wins else "photograph",
                "num_example_per_prompt": 1,
                "ranking_id": number,
                "user_id": int(random.integers(20)),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num", type=int, default=200, help="rows (default: 200)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the shorter side (default: 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tie-share", type=float, default=0.1)
    parser.add_argument("--unlabelled-share", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("photo_pairs.parquet"))
    options = parser.parse_args()
    records = make_pairs(
        options.num,
        options.size,
        seed=options.seed,
        tie_share=options.tie_share,
        unlabelled_share=options.unlabelled_share,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), options.output, row_group_size=16)
    ties = sum(record["label_0"] == 0.5 for record in records)
    unlabelled = sum(not record["has_label"] for record in records)
    size = options.output.stat().st_size / 2**20
    print(f"{options.output}: {len(records)} rows, {ties} ties, {unlabelled} without label, {size:.1f} MiB")


if __name__ == "__main__":
    main()
