"""How many planted copies the search for near duplicates finds, what else it calls one, how fast.

In: the photos of `--photos FOLDER`, else the flowers and birds of `../shared/data` where they are;
and drawn birds of 128 pixels. Copies of every fifth photo are made in memory, one kind after the
other, and looked for among all photos. Then `imagehash.phash` and cleanvision look at the same
copies. Last, patches of the photos stand for up to 50,000 photos, and the search is timed.
Out, on standard output: recall by kind with n, the pairs of different photos by name (look at
them), and seconds and memory by the number of photos.

    python benchmarks/duplicates.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fieldmark import console, draw, images
from fieldmark.duplicates import Fingerprint, fingerprint, groups, twins
from fieldmark.errors import FieldmarkError

DATA = Path(__file__).parents[2] / "shared" / "data"
AT_LEAST = 64  # pixels a side that the fingerprint is made of
Copy = Callable[[Image.Image, np.random.Generator], bytes]


# ---- the copies ---------------------------------------------------------------------------------


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Compress a photo."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(image: Image.Image, share: float) -> Image.Image:
    """Resize both sides to a share of theirs."""
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, shares: Sequence[float]) -> Image.Image:
    """Cut off shares of the sides: left, top, right, bottom."""
    width, height = image.size
    left, top, right, bottom = shares
    start = round(left * width), round(top * height)
    return image.crop((*start, width - round(right * width), height - round(bottom * height)))


def one_side(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Cut a share off a side chosen at random."""
    return cropped(image, np.roll([share, 0, 0, 0], rng.integers(4)).tolist())


def brighter(image: Image.Image, factor: float) -> Image.Image:
    """Multiply all levels."""
    return Image.fromarray((np.asarray(image) * factor).clip(0, 255).astype(np.uint8))


def mirrored(image: Image.Image) -> Image.Image:
    """Swap left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


COPIES: dict[str, Copy] = {
    "resized to 50 %": lambda im, _: jpeg(resized(im, 0.5)),
    "resized to 25 %": lambda im, _: jpeg(resized(im, 0.25)),
    "resized to 150 %": lambda im, _: jpeg(resized(im, 1.5)),
    "squashed to 224 x 224": lambda im, _: jpeg(im.resize((224, 224))),
    "JPEG, quality 30": lambda im, _: jpeg(im, 30),
    "JPEG, quality 10": lambda im, _: jpeg(im, 10),
    "20 % brighter": lambda im, _: jpeg(brighter(im, 1.2)),
    "20 % darker": lambda im, _: jpeg(brighter(im, 0.8)),
    "mirrored": lambda im, _: jpeg(mirrored(im)),
    "cropped by 5 % at one side": lambda im, rng: jpeg(one_side(im, 0.05, rng)),
    "cropped by 10 % at one side": lambda im, rng: jpeg(one_side(im, 0.1, rng)),
    "cropped by 15 % at one side": lambda im, rng: jpeg(one_side(im, 0.15, rng)),
    "cropped by 5 % at all sides": lambda im, _: jpeg(cropped(im, [0.05] * 4)),
    "cropped by 10 % at all sides": lambda im, _: jpeg(cropped(im, [0.1] * 4)),
    "cropped by 15 % at all sides": lambda im, _: jpeg(cropped(im, [0.15] * 4)),
    "cropped by 0 to 10 % at each": lambda im, rng: jpeg(
        cropped(im, rng.uniform(0, 0.1, 4).tolist())
    ),
    "mirrored, resized to 50 %, quality 30": lambda im, _: jpeg(resized(mirrored(im), 0.5), 30),
    "cropped by 10 % at one, 50 %, quality 30": lambda im, rng: jpeg(
        resized(one_side(im, 0.1, rng), 0.5), 30
    ),
    "mirrored, cropped by 10 % at all, quality 30": lambda im, _: jpeg(
        cropped(mirrored(im), [0.1] * 4), 30
    ),
    "turned by 3 degrees": lambda im, _: jpeg(im.rotate(3, Image.Resampling.BICUBIC)),
    "turned by 90 degrees": lambda im, _: jpeg(im.transpose(Image.Transpose.ROTATE_90)),
    "grey": lambda im, _: jpeg(im.convert("L")),
}


def read(content: bytes) -> Fingerprint:
    """Make the fingerprint as a user of the module does."""
    return fingerprint(images.decode(content, at_least=AT_LEAST))


def made(files: Sequence[Path], chosen: Sequence[int], copy: Copy) -> list[bytes]:
    """Make one kind of copy of the chosen photos."""

    def make(i: int) -> bytes:
        image = Image.fromarray(images.decode(files[i].read_bytes()))
        return copy(image, np.random.default_rng(i))

    with ThreadPoolExecutor() as threads:
        return list(threads.map(make, chosen))


# ---- what is found ------------------------------------------------------------------------------


def among_themselves(files: Sequence[Path], originals: list[Fingerprint]) -> set[tuple[int, int]]:
    """Print the pairs among the photos as they are."""
    found = twins(originals)
    print(f"  pairs among the photos as they are: {len(found)}")
    for twin in found:
        a, b = files[twin.first], files[twin.second]
        print(f"    {twin.kind}, {twin.likeness:.3f}: {a.parent.name}/{a.name}, {b.name}")
    return {(twin.first, twin.second) for twin in found}


def finds(name: str, files: Sequence[Path], every: int, rivals: bool) -> None:
    """Plant copies of every so many photos, kind by kind, and print what is found."""
    with ThreadPoolExecutor() as threads:
        originals = list(threads.map(lambda file: read(file.read_bytes()), files))
    # Not the first of each: those served to choose the thresholds.
    chosen = range(every // 2, len(files), every)
    print(f"\n{name}: {len(files)} photos, copies of {len(chosen)}")
    known = among_themselves(files, originals)
    print(f"  {'':46}found   kind told  phash equal  phash within 8")
    hashes = [imagehash.phash(Image.open(file)) for file in files] if rivals else []
    planted: dict[str, list[bytes]] = {}
    right = wrong = 0
    for kind, copy in COPIES.items():
        planted[kind] = made(files, chosen, copy)
        found = twins([*originals, *map(read, planted[kind])])
        origin = [*range(len(files)), *chosen]
        own = [t for t in found if origin[t.first] == origin[t.second]]
        other = {tuple(sorted((origin[t.first], origin[t.second]))) for t in found} - known
        other -= {(i, i) for i in range(len(files))}
        expected = "mirrored" if "mirr" in kind else "cropped" if "crop" in kind else "resized"
        told = sum(t.kind == expected for t in own)
        theirs = phash_finds(hashes, chosen, planted[kind]) if rivals else ""
        print(f"  {kind:46}{len(own):4}/{len(chosen):<4}{told:6}     {theirs}")
        right, wrong = right + len(own), wrong + len(other)
        for a, b in sorted(other):
            print(f"    of different photos: {files[a].name}, {files[b].name}")
    print(f"  pairs of a photo and its copy: {right}; of photos that are no pair above: {wrong}")
    all_at_once(files, originals, chosen, planted)
    if rivals:
        cleanvision_finds(files, chosen, planted)


def all_at_once(
    files: Sequence[Path],
    originals: list[Fingerprint],
    chosen: Sequence[int],
    planted: dict[str, list[bytes]],
) -> None:
    """Print what groups become of all the copies together."""
    copies = [content for kind in planted.values() for content in kind]
    prints = [*originals, *map(read, copies)]
    origin = [*range(len(files)), *(list(chosen) * len(planted))]
    together = groups(len(prints), ((t.first, t.second) for t in twins(prints)))
    grouped = sum(
        sum(origin[i] == origin[group[0]] for i in group[1:])
        for group in together
        if group[0] < len(files)
    )
    mixed = [group for group in together if len({origin[i] for i in group}) > 1]
    print(f"  all copies at once: {grouped} of {len(copies)} in their original's group;", end=" ")
    print(f"{len(mixed)} groups of more than one photo, the largest of", end=" ")
    print(max((len({origin[i] for i in group}) for group in mixed), default=1), "photos")


# ---- the others ---------------------------------------------------------------------------------


def phash_finds(
    hashes: list[imagehash.ImageHash], chosen: Sequence[int], copies: Sequence[bytes]
) -> str:
    """Say how many copies have the hash of their photo, or nearly."""
    pairs = zip(chosen, copies, strict=True)
    apart = [hashes[i] - imagehash.phash(Image.open(io.BytesIO(copy))) for i, copy in pairs]
    return f"{sum(d == 0 for d in apart):8}     {sum(d <= 8 for d in apart):8}"


def cleanvision_finds(
    files: Sequence[Path], chosen: Sequence[int], planted: dict[str, list[bytes]]
) -> None:
    """Print how many copies cleanvision puts into a set with their photo."""
    from cleanvision import Imagelab

    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            (Path(folder) / f"{i}-original.jpg").write_bytes(file.read_bytes())
        for k, copies in enumerate(planted.values()):
            for i, content in zip(chosen, copies, strict=True):
                (Path(folder) / f"{i}-{k}.jpg").write_bytes(content)
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            lab = Imagelab(data_path=folder)
            lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, verbose=False)
    found: dict[str, int] = dict.fromkeys(planted, 0)
    mixed = 0
    for kind in ("near_duplicates", "exact_duplicates"):
        for members in lab.info[kind]["sets"]:
            names = [Path(member).stem.split("-") for member in members]
            mixed += len({photo for photo, _ in names}) > 1
            whole = {photo for photo, maker in names if maker == "original"}
            for photo, maker in names:
                if maker != "original" and photo in whole:
                    found[list(planted)[int(maker)]] += 1
    total = sum(map(len, planted.values()))
    print(f"  cleanvision: {sum(found.values())} of {total} with their photo; {mixed} mixed sets")
    print("    " + "; ".join(f"{kind}: {n}" for kind, n in found.items()))


# ---- the time -----------------------------------------------------------------------------------


def cost(files: Sequence[Path]) -> None:
    """Print what a fingerprint costs beside decoding the photo."""
    contents = [file.read_bytes() for file in files[:: max(1, len(files) // 150)]]
    rows = []
    for _ in range(5):
        marks = [time.process_time()]
        whole = [images.decode(content) for content in contents]
        marks.append(time.process_time())
        small = [images.decode(content, at_least=AT_LEAST) for content in contents]
        marks.append(time.process_time())
        for photos in (whole, small):
            for photo in photos:
                fingerprint(photo)
            marks.append(time.process_time())
        rows.append(np.diff(marks) / len(contents) * 1e3)
    decode, reduced, of_whole, of_reduced = np.median(rows, axis=0)
    print(f"\ncost a photo, n = {len(contents)}, medians of 5 rounds, one core")
    print(f"  all pixels: decode {decode:.2f} ms, fingerprint {of_whole:.2f} ms,", end=" ")
    print(f"ratio {of_whole / decode:.2f}")
    print(f"  at least {AT_LEAST} pixels a side: decode {reduced:.2f} ms, fingerprint", end=" ")
    print(f"{of_reduced:.2f} ms, ratio {of_reduced / reduced:.2f}")


def patches(files: Sequence[Path], count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield patches of the photos, in grids of 2 x 2 up to 6 x 6, photo after photo."""
    for grid in range(2, 7):
        for file in files:
            photo = images.decode(file.read_bytes())
            h, w, _ = photo.shape
            for i in range(grid * grid):
                y, x = divmod(i, grid)
                yield photo[
                    y * h // grid : (y + 1) * h // grid, x * w // grid : (x + 1) * w // grid
                ]
                count -= 1
                if not count:
                    return


def growth(files: Sequence[Path], counts: Sequence[int]) -> None:
    """Print the search's time and memory for growing numbers of patches, with copies planted."""
    kinds = ("JPEG, quality 30", "mirrored", "cropped by 5 % at all sides")
    prints, copies = [], []
    for i, patch in enumerate(patches(files, max(counts))):
        prints.append(fingerprint(patch))
        if i % 100 == 0:
            rng = np.random.default_rng(i)
            copies.append(read(COPIES[kinds[i // 100 % 3]](Image.fromarray(patch), rng)))
    order = np.random.default_rng(0).permutation(len(prints) // 100 * 100)
    print(f"\nthe search: patches of {len(files)} photos, a copy of each hundredth among them")
    for n in counts:
        if n > len(order):
            break
        # Every n has patches of all photos; each hundredth of them brings its copy.
        rest = order[order % 100 != 0]
        first = order[order % 100 == 0][: n // 101]
        shown = [*first, *rest[: n - 2 * len(first)]]
        asked = [prints[i] for i in shown] + [copies[i // 100] for i in first]
        start, used = time.perf_counter(), time.process_time()
        found = twins(asked)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        true = {(k, n - len(first) + k) for k in range(len(first))}
        hits = sum((t.first, t.second) in true for t in found)
        largest = max(map(len, groups(n, ((t.first, t.second) for t in found))), default=0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {n:6}: {seconds:6.1f} s, {used:6.1f} s of a core, {peak:5.0f} MB;", end=" ")
        print(f"{hits} of {len(first)} copies, {len(found) - hits} other pairs,", end=" ")
        print(f"{sum(t.kind == 'mirrored' for t in found)} pairs mirrored, largest group {largest}")


def photos_of(folder: Path) -> list[Path]:
    """Return the photos that can be read."""
    kept = []
    for file in sorted(path for path in folder.glob("**/*") if path.is_file()):
        with contextlib.suppress(FieldmarkError):
            images.inspect(file.read_bytes())
            kept.append(file)
    return kept


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--every", type=int, default=5, help="plant copies of each n-th photo")
    parser.add_argument("--counts", type=int, nargs="*", default=[5000, 10000, 25000, 50000])
    parser.add_argument("--no-rivals", action="store_true", help="without phash and cleanvision")
    arguments = parser.parse_args()
    console.be_quiet()
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw.birds(Path(folder) / "birds", per_class=250, size=128, seed=1)
        sets = {"drawn birds": sorted(drawn.glob("*/*.jpg"))}
        places = [arguments.photos] if arguments.photos else [DATA / "flowers", DATA / "birds"]
        real = {place.name: photos_of(place) for place in places if place.is_dir()}
        for name, files in (real | sets).items():
            finds(name, files, arguments.every, not arguments.no_rivals)
        files = [file for part in real.values() for file in part] or sets["drawn birds"]
        cost(files)
        growth(files, arguments.counts)


if __name__ == "__main__":
    main()
